"""One harness per parser. docs/decisions/fuzzing.md has what each of them found.

A harness has `check(data)`, which raises for a broken promise, and `SEEDS`, inputs to start from.
Optional: `TOKENS`, words of the format; `CI_RUNS`, for harnesses that are slower than others.
"""
