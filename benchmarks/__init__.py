"""What bdray costs beside what the hardware can do: one module a benchmark, all run by `python -m benchmarks`."""
