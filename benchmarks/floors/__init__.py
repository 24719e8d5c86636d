"""Lower bounds for any server: bare callables around `session.run`, without features."""
