"""The gradient of a strided convolution's input is made in phases: bit for bit what zeros between the pixels give."""

import numpy as np
import pytest

from cyxcore.kernels import cpu

# Image, kernel (of sizes that no other way takes at stride 1), stride, padding, dilation.
STRIDED = [
    ((2, 13, 9, 20), (4, 13, 4, 4), (2, 2), (1, 1), (1, 1)),
    ((1, 2, 30, 41), (3, 2, 5, 2), (3, 2), (2, 0), (2, 1)),
    ((3, 1, 7, 8), (2, 1, 1, 1), (2, 4), (0, 0), (1, 1)),
    ((1, 5, 6, 33), (1, 5, 2, 7), (1, 3), (0, 3), (1, 1)),
    ((1, 3, 90, 200), (5, 3, 2, 4), (2, 2), (0, 1), (1, 1)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", STRIDED)
def test_a_gradient_in_phases_has_the_bits_of_zeros_between_the_pixels(threads, case, dtype):
    shape, kernel, stride, padding, dilation = case
    rng = np.random.default_rng(3)
    whole = [n + 2 * p - d * (k - 1) for n, k, p, d in zip(shape[2:], kernel[2:], padding, dilation, strict=True)]
    sizes = [(n - 1) // step + 1 for n, step in zip(whole, stride, strict=True)]
    g = rng.standard_normal((shape[0], kernel[0], *sizes)).astype(dtype)
    weight = rng.standard_normal(kernel).astype(dtype)
    spaced = np.zeros((*g.shape[:2], *whole), dtype)
    spaced[:, :, :: stride[0], :: stride[1]] = g
    found = []
    for given, step in ((g, stride), (spaced, (1, 1))):
        out = np.full(shape, np.nan, dtype)
        options = {"stride": step, "padding": padding, "dilation": dilation, "groups": 1, "input_shape": shape}
        cpu.call("conv2d_grad_input", out, [given, weight], options)
        found.append(out.tobytes())
    assert found[0] == found[1]
