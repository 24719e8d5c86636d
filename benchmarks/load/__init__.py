"""Load generators: Debian's wrk and h2load for closed loops, and an open loop of our own."""
