"""Benchmarks of training: its speed beside plain PyTorch, and the accuracy of every recipe."""
