"""Pictures of digits and of other things: how many are read right, and how many are refused."""
