"""What the ops do: `reference` in NumPy (the definition), `cpu` in C (the same, fast).

Chosen in cyxcore/device.py.
"""
