"""The main benchmark: this server, its rivals and the floors below them, under the same loads."""
