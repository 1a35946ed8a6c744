"""Bodies of the tools/benchmark_*.py commands, which parse arguments before torch is imported."""
