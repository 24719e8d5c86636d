"""This server beside its rivals and beside the floors below it: see docs/performance.md."""
