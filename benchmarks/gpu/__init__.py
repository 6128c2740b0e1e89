"""The device `cuda` beside torch on one card: `python -m benchmarks.gpu`."""
