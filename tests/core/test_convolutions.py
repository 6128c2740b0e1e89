"""Convolutions that are made in a way of their own have the bits of the plain one."""

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
def test_the_gradient_of_a_strided_one_in_phases_has_the_bits_of_zeros_between_the_pixels(threads, case, dtype):
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


# Of few channels and many, of more outputs than a block has rows, of windows that meet not all pixels, and far apart.
SPLIT = [
    *STRIDED,
    ((2, 3, 9, 7), (40, 3, 4, 4), (2, 3), (1, 2), (1, 1)),
    ((2, 20, 8, 8), (70, 20, 4, 4), (2, 2), (1, 1), (1, 1)),
    ((1, 3, 61, 57), (24, 3, 7, 7), (2, 2), (3, 3), (1, 1)),
    ((2, 5, 12, 50), (6, 5, 1, 1), (3, 3), (0, 0), (1, 1)),
    ((1, 2, 11, 300), (3, 2, 2, 2), (2, 70), (0, 1), (2, 3)),
    ((2, 4, 5, 6), (5, 4, 1, 3), (1, 2), (0, 1), (1, 1)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", SPLIT)
def test_a_strided_one_has_the_bits_of_the_dense_one_at_its_pixels(isa, threads, case, dtype):
    shape, kernel, stride, padding, dilation = case
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal(shape).astype(dtype), rng.standard_normal(kernel).astype(dtype)
    sizes = [n + 2 * p - d * (k - 1) for n, k, p, d in zip(shape[2:], kernel[2:], padding, dilation, strict=True)]
    dense = np.empty((shape[0], kernel[0], *sizes), dtype)
    options = {"padding": padding, "dilation": dilation, "groups": 1}
    cpu.call("conv2d", dense, [x, weight], options | {"stride": (1, 1)})
    at = (..., slice(None, None, stride[0]), slice(None, None, stride[1]))
    out = np.full(dense[at].shape, np.nan, dtype)
    cpu.call("conv2d", out, [x, weight], options | {"stride": stride})
    assert out.tobytes() == dense[at].tobytes()

    g, spaced = rng.standard_normal(out.shape).astype(dtype), np.zeros_like(dense)
    spaced[at] = g
    found = []
    for given, step in ((g, stride), (spaced, (1, 1))):
        gradient = np.full(kernel, np.nan, dtype)
        cpu.call("conv2d_grad_weight", gradient, [given, x], options | {"stride": step, "weight_shape": kernel})
        found.append(gradient.tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(5, 3, 4, 3, 6), (1, 2, 3, 1, 7), (3, 40, 4, 4, 1), (33, 5, 2, 2, 65), (1, 1, 1, 1, 1)]
)
def test_a_kernel_as_large_as_its_image_has_the_bits_of_one_that_moves(threads, shape, dtype):
    images, channels, height, width, outputs = shape
    rng = np.random.default_rng(4)
    x, weight, g = (
        rng.standard_normal(sizes).astype(dtype)
        for sizes in ((images, channels, height, width), (outputs, channels, height, width), (images, outputs, 1, 1))
    )
    wider, two = np.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1))), np.pad(g, ((0, 0), (0, 0), (0, 0), (0, 1)))
    options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    for op, like, inputs, moving, of_moving, more in (
        ("conv2d", g, [x, weight], [wider, weight], two, {}),
        ("conv2d_grad_input", x, [g, weight], [two, weight], wider, {"input_shape": None}),
        ("conv2d_grad_weight", weight, [g, x], [two, wider], weight, {"weight_shape": weight.shape}),
    ):
        found = []
        for given, out in ((inputs, np.empty_like(like)), (moving, np.empty_like(of_moving))):
            cpu.call(op, out, given, options | {key: value or out.shape for key, value in more.items()})
            found.append(np.ascontiguousarray(out[..., : like.shape[-1]]))
        assert found[0].tobytes() == found[1].tobytes(), op
