"""Programs that call the service: the command line client and the demonstration of `make run`."""
