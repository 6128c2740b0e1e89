"""The parts of bench_serve: who asks, and the peers that answer."""
