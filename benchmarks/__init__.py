"""Measures this server beside its rivals and the floors below it: see docs/performance.md."""
