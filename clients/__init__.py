"""Programs that call a running service."""
