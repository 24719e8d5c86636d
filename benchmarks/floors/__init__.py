"""The least that a server can be: bare callables around `session.run`, with no features at all."""
