"""How the server behaves at five times its capacity, and under abuse."""
