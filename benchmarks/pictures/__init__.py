"""Pictures of digits and of what is no digit: how many are read right, and how many are refused."""
