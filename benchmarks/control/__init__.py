"""One module per system that `python -m benchmarks.bench_control` measures; each runs as a process of its own."""
