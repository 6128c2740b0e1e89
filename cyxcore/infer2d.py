"""The shape rules of convolution and pooling: images are (N, C, H, W)."""

from cyxcore.dtype import FLOATS
from cyxcore.errors import ShapeError
from cyxcore.infer import Attrs, Shape, Typed, accept


def window_count(op: str, size: int, kernel: int, stride: int, padding: int, dilation: int, shape: Shape) -> int:
    """How many windows fit: floor((size + 2*padding - dilation*(kernel-1) - 1) / stride) + 1."""
    span = dilation * (kernel - 1) + 1
    if size + 2 * padding < span:
        raise ShapeError(
            f"{op}: a window of {span} does not fit into {size} with padding {padding} (image {shape}); "
            "use a smaller kernel or more padding"
        )
    return (size + 2 * padding - span) // stride + 1


def conv2d(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    x, w = shapes
    dtype = accept(op, dtypes, FLOATS)
    if len(x) != 4 or len(w) != 4:
        raise ShapeError(f"{op}: expected x (N, C, H, W) and w (O, C/groups, KH, KW), got {x} and {w}")
    groups = attrs["groups"]
    if w[1] * groups != x[1] or w[0] % groups or 0 in w:
        raise ShapeError(
            f"{op}: expected w (O, {x[1]}/{groups}, KH, KW) with O divisible by {groups}, got {w} for x {x}"
        )
    sizes = tuple(
        window_count(op, x[2 + i], w[2 + i], attrs["stride"][i], attrs["padding"][i], attrs["dilation"][i], x)
        for i in range(2)
    )
    return (x[0], w[0], *sizes), dtype


def _agree(op: str, g: Shape, expected: Typed) -> None:
    if g != expected[0]:
        raise ShapeError(f"{op}: expected a gradient of shape {expected[0]}, got {g}")


def conv2d_grad_input(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    x = tuple(attrs["input_shape"])
    _agree(op, shapes[0], conv2d(op, (x, shapes[1]), dtypes, attrs))
    return x, dtypes[0]


def conv2d_grad_weight(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    w = tuple(attrs["weight_shape"])
    _agree(op, shapes[0], conv2d(op, (shapes[1], w), dtypes, attrs))
    return w, dtypes[0]


def pool2d(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    x, dtype = shapes[0], accept(op, dtypes, FLOATS)
    if len(x) != 4:
        raise ShapeError(f"{op}: expected an image (N, C, H, W), got {x}")
    kernel, stride, padding = attrs["kernel"], attrs["stride"], attrs["padding"]
    if padding[0] * 2 > kernel[0] or padding[1] * 2 > kernel[1]:
        raise ShapeError(f"{op}: expected padding of at most half the kernel {kernel}, got {padding}")
    sizes = tuple(window_count(op, x[2 + i], kernel[i], stride[i], padding[i], 1, x) for i in range(2))
    return (*x[:2], *sizes), dtype


def max_pool2d_grad(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    _agree(op, shapes[0], pool2d(op, shapes[1:], dtypes, attrs))
    return shapes[1], dtypes[0]


def avg_pool2d_grad(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    x = tuple(attrs["input_shape"])
    _agree(op, shapes[0], pool2d(op, (x,), dtypes, attrs))
    return x, dtypes[0]
