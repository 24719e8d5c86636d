"""How the cost of a request grows with connections, images, bytes, models and time."""
