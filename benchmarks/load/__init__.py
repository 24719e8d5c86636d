"""The load generators: wrk and h2load as Debian has them, and an open loop of our own."""
