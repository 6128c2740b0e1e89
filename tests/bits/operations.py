"""What the instructions of a random training step do.

An instruction is an operation and three numbers that choose, by their remainders, what it is of among the values that
are there. So any list of instructions is a program, and one that fails is shrunk by leaving instructions out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.infer import broadcast

MOST_ELEMENTS = 30_000


class Instruction(NamedTuple):
    op: str
    a: int
    b: int
    c: int


class Program(NamedTuple):
    rows: int
    width: int
    seed: int  # of weights and data
    optimizer: int
    training: int  # a set of bits: how the losses are put together and what happens between steps
    body: tuple[Instruction, ...]


Rule = Callable[["Scene", Any, Instruction], Any]  # a value, or None where there is nothing it can be of


class Scene:
    """The modules and parameters of a program, made when its first run needs them; they stay for the others."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.model = nn.Module()
        self.model.parts = nn.ModuleDict()
        self.model.own = nn.ParameterDict()
        self.values: list[Any] = []
        self.losses: list[Any] = []
        self.done: list[tuple[Instruction, Any, list[Any]]] = []
        self.number = 0
        self.labels: Any = None
        self._dice = np.random.default_rng(program.seed)

    def part(self, make: Callable[[], nn.Module], kind: str = "") -> nn.Module:
        """The module of the instruction that is being run, or of its kind where that is named."""
        name = kind or f"m{self.number}"
        if name not in self.model.parts:
            self.model.parts[name] = make()
        return self.model.parts[name]

    def own(self, shape: tuple[int, ...], kind: str = "") -> Any:
        """A parameter of the instruction that is being run, or of its kind where that is named."""
        name = kind or f"p{self.number}"
        if name not in self.model.own:
            self.model.own[name] = nn.Parameter((self._dice.normal(size=shape) * 0.5).astype(np.float32))
        return self.model.own[name]

    def pick(self, number: int, fits: Callable[[Any], bool]) -> Any:
        """One of the values that fit, by a number; the newest are asked first, so that programs are deep."""
        found = [value for value in reversed(self.values) if fits(value)]
        return found[number % min(len(found), 6)] if found else None


UNARY: list[Callable[[Any], Any]] = [
    lambda x: x.tanh(),
    lambda x: x.sigmoid(),
    lambda x: x.relu(),
    lambda x: x.tanh().exp(),
    lambda x: x.abs(),
    lambda x: x.square(),
    lambda x: (x.square() + 1e-3).sqrt(),
    lambda x: (x * x + 1.0).log(),
    lambda x: -x,
    lambda x: x**2,
    lambda x: x**3,
    lambda x: (x.abs() + 0.1) ** 0.5,
    lambda x: (x.abs() + 0.1) ** -0.5,
    lambda x: (x.abs() + 0.1).rsqrt(),
    lambda x: 1.0 / (x.abs() + 0.5),
    lambda x: (x.square() + 1.0).reciprocal(),
    lambda x: x * 1.0,
    lambda x: x / 1.0,
    lambda x: x + 0.0,
    lambda x: x - 0.0,
    lambda x: 0.0 - x,
    lambda x: x * 0.3,
    lambda x: 0.7 * x / 3.0,
    lambda x: x * 0.1 * 0.3,
    lambda x: x / 3.0,
    lambda x: x / 7.0 / 3.0,
    lambda x: 1.0 - x,
    lambda x: x - 0.3 * x,
    lambda x: x + x,
    lambda x: x * x,
    lambda x: x / (x.abs() + 1.0),
    lambda x: x.clamp(-0.7, 0.9),
    lambda x: x.clamp(min=-0.3),
    lambda x: F.gelu(x),
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x: F.silu(x),
    lambda x: F.softplus(x),
    lambda x: F.leaky_relu(x, 0.1),
    lambda x: F.elu(x),
    lambda x: F.selu(x),
    lambda x: F.mish(x),
    lambda x: F.hardswish(x),
    lambda x: F.hardtanh(x),
    lambda x: F.softsign(x),
    lambda x: F.logsigmoid(x),
    lambda x: x.sin(),
    lambda x: x.cos() * x,
    lambda x: x.erf(),
    lambda x: x.detach() * x,
    lambda x: x - x.detach(),
    lambda x: x + x.floor().detach(),
    lambda x: x * (x > 0),
    lambda x: x - x * (x > 0.2).astype(x.dtype),
    lambda x: cx.where(x > 0, x, x * 0.2),
    lambda x: cx.where(x.detach() > 0, x.exp().clamp(max=2.0), 0.0),
    lambda x: x.sign() * x.abs(),
    lambda x: x.exp() / (1.0 + x.exp()),
    lambda x: x.double().tanh().astype(x.dtype),
    lambda x: x.masked_fill(x > 0.5, 0.25),
    lambda x: F.dropout(x, 0.3),
    lambda x: cx.no_grad()(lambda: x * 2.0)(),
    lambda x: cx.remat(lambda v: (v * 1.5).tanh() * v, x),
    # what NumPy does:
    lambda x: x.square().log1p(),
    lambda x: x.tanh().expm1(),
    lambda x: x.clamp(-0.9, 0.9).asin() * x,
    lambda x: x.sinh().asinh(),
    lambda x: x.atan() + x.detach().ceil(),
    lambda x: cx.remainder(x, 0.75),
    lambda x: cx.complex(x, x.tanh()).abs(),
    lambda x: x.half().tanh().astype(x.dtype),
    lambda x: Halved.apply(x, 0.5),
    lambda x: x * cx.distributions.Gamma(x.detach().nan_to_num().sigmoid() + 0.5, 2.0).rsample(),
    lambda x: cx.bernoulli(x.detach().nan_to_num().sigmoid()) * x,
]


class Halved(cx.Function):
    """Of which the gradient is another one than that of its operations."""

    @staticmethod
    def forward(ctx: Any, x: Any, factor: float) -> Any:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return g * x.tanh() * ctx.factor, None


# Which change no value, though the walk back may see them.
SAME: list[Callable[[Any], Any]] = [
    lambda x: x.copy(),
    lambda x: x.clone(),
    lambda x: +x,
    lambda x: x[:] if x.ndim else x,
    lambda x: x[...],
    lambda x: x[None][0],
    lambda x: x[..., None].squeeze(-1),
    lambda x: x.reshape(x.shape),
    lambda x: x.reshape(-1).reshape(x.shape),
    lambda x: x.view(*x.shape),
    lambda x: x.flatten().reshape(*x.shape),
    lambda x: x.T.T if x.ndim == 2 else x.permute(*range(x.ndim)),
    lambda x: x.expand(*x.shape),
    lambda x: x.broadcast_to(x.shape),
    lambda x: x.unsqueeze(0).squeeze(0),
    lambda x: x.astype(x.dtype),
    lambda x: x.flip(0).flip(0) if x.ndim else x,
    lambda x: x.roll(0, 0) if x.ndim else x,
    lambda x: cx.concat([x], 0) if x.ndim else x,
    lambda x: cx.stack([x], 0)[0],
    lambda x: x[: len(x)] if x.ndim else x,
    lambda x: x[::-1][::-1] if x.ndim else x,
    lambda x: x.sum(()) if x.ndim > 1 else x,
    lambda x: x.repeat(1, *(1,) * (x.ndim - 1)) if x.ndim else x,
    lambda x: x.clamp(-1e9, 1e9),
    lambda x: x.narrow(0, 0, len(x)) if x.ndim else x,
    lambda x: F.pad(x, (0, 0)) if x.ndim else x,
    lambda x: cx.where(x == x, x, 0.0),
    lambda x: cx.concat([x[:1], x[1:]], 0) if x.ndim and len(x) > 1 else x,
    lambda x: x.max(0, keepdim=True).values if hasattr(x, "max") and x.ndim and len(x) == 1 else x,
]

BINARY: list[Callable[[Any, Any], Any]] = [
    lambda x, y: x + y,
    lambda x, y: x - y,
    lambda x, y: x * y,
    lambda x, y: x / (y.abs() + 0.5),
    lambda x, y: x * y + x,
    lambda x, y: x - x * y,
    lambda x, y: (x + y) / 2,
    lambda x, y: (x + y) * 0.5 - x / 2,
    lambda x, y: cx.maximum(x, y),
    lambda x, y: cx.minimum(x, y),
    lambda x, y: cx.where(x > y, x, y * 0.5),
    lambda x, y: x * (y > 0),
    lambda x, y: x - x * (y > 0).astype(x.dtype),
    lambda x, y: (x - y).square(),
    lambda x, y: x.lerp(y, 0.3),
    lambda x, y: x.detach() * y,
    lambda x, y: x + 0.1 * y + x * y,
    lambda x, y: (x - y).tanh().exp() * y,
    lambda x, y: x * y.sigmoid() + y * x.sigmoid(),
    lambda x, y: cx.logaddexp(x, y),
    lambda x, y: cx.hypot(x, y + 0.1),
    lambda x, y: cx.atan2(x, y),
    lambda x, y: cx.fmod(x, y.abs() + 0.5),
]

# (a value, an axis, whether the axis stays) -> what is left
REDUCED: list[Callable[[Any, int, bool], Any]] = [
    lambda x, d, k: x.sum(d, keepdim=k),
    lambda x, d, k: x.mean(d, keepdim=k),
    lambda x, d, k: x.max(d, keepdim=k).values if hasattr(x.max(d, keepdim=k), "values") else x.amax(d, keepdim=k),
    lambda x, d, k: x.amin(d, keepdim=k),
    lambda x, d, k: x.logsumexp(d, keepdim=k),
    lambda x, d, k: x.norm(dim=d, keepdim=k) + 0.1,
    lambda x, d, k: (x.var(d, keepdim=k, correction=0) + 1e-5).sqrt(),
    lambda x, d, k: x.std(d, keepdim=k, correction=0) + 1e-2,
    lambda x, d, k: x.square().mean(d, keepdim=k),
    lambda x, d, k: x.abs().sum(d, keepdim=k),
    lambda x, d, k: x.tanh().prod(d, keepdim=k),
    lambda x, d, k: x.median(d, keepdim=k).values,
]

# (a value, an axis) -> one of the same shape
ALONG: list[Callable[[Any, int], Any]] = [
    lambda x, d: x.softmax(d),
    lambda x, d: x.log_softmax(d),
    lambda x, d: F.softmax(x * 3.0, d),
    lambda x, d: x / (x.norm(dim=d, keepdim=True) + 1e-6),
    lambda x, d: F.normalize(x, dim=d),
    lambda x, d: x - x.mean(d, keepdim=True),
    lambda x, d: (x - x.mean(d, keepdim=True)) / (x.var(d, keepdim=True, correction=0) + 1e-5).sqrt(),
    lambda x, d: x - x.logsumexp(d, keepdim=True),
    lambda x, d: x * (x.square().mean(d, keepdim=True) + 1e-6).rsqrt(),
    lambda x, d: x.flip(d),
    lambda x, d: x.roll(1, d),
    lambda x, d: x.softmax(d) * x.log_softmax(d),
    lambda x, d: x / x.abs().sum(d, keepdim=True).clamp(min=0.1),
    lambda x, d: x.softmax(d) @ x.softmax(d).transpose(-1, -2) @ x if x.ndim > 1 else x,
    lambda x, d: x.cumsum(d) / x.shape[d],
    lambda x, d: x.tanh().cumprod(d) if x.shape[d] < 20 else x,
    lambda x, d: x.sort(d).values,
    lambda x, d: x.logcumsumexp(d),
    lambda x, d: x.take_along_dim(x.detach().argsort(d), d),
    lambda x, d: cx.fft.irfft(cx.fft.rfft(x, axis=d), n=x.shape[d], axis=d),
    lambda x, d: cx.scatter(x, d, x.detach().argsort(d), x * 0.5),
]


def _axis(x: Any, number: int) -> int:
    return -1 if number % 2 else number // 2 % x.ndim


def _unary(scene: Scene, x: Any, i: Instruction) -> Any:
    return UNARY[i.b % len(UNARY)](x)


def _same(scene: Scene, x: Any, i: Instruction) -> Any:
    return SAME[i.b % len(SAME)](x)


def _binary(scene: Scene, x: Any, i: Instruction) -> Any:
    def fits(y: Any) -> bool:
        try:
            wide = broadcast("", x.shape, y.shape)
        except cx.errors.CyxError:
            return False
        return int(np.prod(wide)) <= MOST_ELEMENTS

    return BINARY[i.c % len(BINARY)](x, scene.pick(i.b, fits))


def _reduced(scene: Scene, x: Any, i: Instruction) -> Any:
    if not x.ndim:
        return x.square()
    if i.b % 7 == 0:
        return (x.sum(), x.mean(), x.square().sum().sqrt(), x.norm(), x.max())[i.c % 5]
    return REDUCED[i.b % len(REDUCED)](x, _axis(x, i.c), bool(i.c // 8 % 3))


def _along(scene: Scene, x: Any, i: Instruction) -> Any:
    return ALONG[i.b % len(ALONG)](x, _axis(x, i.c)) if x.ndim else None


def _moved(scene: Scene, x: Any, i: Instruction) -> Any:
    if not x.ndim:
        return x.reshape(1)
    axis, size = _axis(x, i.c), x.shape[_axis(x, i.c)]
    half = max(1, size // 2)

    def narrowed(start: int, count: int) -> Any:
        return x.narrow(axis % x.ndim, start, count)

    match i.b % 18:
        case 12:
            return x[..., ::2] * 0.5
        case 13:
            return x[cx.tensor([0, len(x) - 1, 0])]
        case 14:
            return sum(piece * (place + 1.0) for place, piece in enumerate(x.unbind(axis)[:6]))
        case 15:
            return F.pad(x, (1, 1)) if x.ndim > 1 else x
        case 16:
            return cx.concat([piece * 0.5 for piece in x.split(2, axis)][:8], axis)
        case 17:
            return x.flip(axis) if size > 1 else x.repeat_interleave(2, axis)
        case 0:
            return x.transpose(-1, -2) if x.ndim > 1 else x.unsqueeze(-1)
        case 1:
            return x.reshape(-1)
        case 2:
            return narrowed(0, half)
        case 3:
            return narrowed(size - half, half)
        case 4:
            return cx.concat([narrowed(0, half), narrowed(half, size - half)], axis) if size > half else x
        case 5:
            return cx.concat([x, x * 0.5], axis)
        case 6:
            return cx.stack([x, x.tanh()], 0).sum(0)
        case 7:
            return x.unsqueeze(i.c % (x.ndim + 1)) if x.ndim < 4 else x
        case 8:
            return x.squeeze()
        case 9:
            return x.expand(2, *x.shape).mean(0) if x.ndim < 4 else x
        case 10:
            return x.take_along_dim(x.detach().argmax(axis, keepdim=True), axis)
        case _:
            pieces = x.chunk(2, axis)
            return pieces[0] * pieces[-1] if pieces[0].shape == pieces[-1].shape else pieces[0]


def _product(scene: Scene, x: Any, i: Instruction) -> Any:
    if x.ndim not in (2, 3):
        return None
    y = scene.pick(i.b, lambda y: y.ndim == x.ndim and y.shape[-1] == x.shape[-1] and y.shape[:-2] == x.shape[:-2])
    small = x.shape[-1] ** -0.5
    match i.c % 7:
        case 6 if x.ndim == 2 and x.shape[-1] <= 24:
            return x @ cx.linalg.inv(x.T @ x / x.shape[0] + cx.eye(x.shape[-1], dtype=x.dtype))
        case 0:
            return x @ y.transpose(-1, -2) * small
        case 1:
            return small * (x @ y.mT)
        case 2 if x.shape == y.shape:
            return x.transpose(-1, -2) @ y / x.shape[-2]
        case 3:
            return (x @ y.mT).softmax(-1) @ y
        case 4 if x.ndim == 2:
            return cx.einsum("ij,kj->ik", x, y) * small
        case _:
            kind = f"w{x.shape[-1]}" if i.b % 2 else ""
            return x @ scene.own((x.shape[-1], 1 + i.b % 40 if not kind else x.shape[-1]), kind) * small


def _scaled(scene: Scene, x: Any, i: Instruction) -> Any:
    """With parameters of its own, or such that several instructions share."""
    shape = ((), (1,), x.shape[-1:], (*x.shape[:-2], *(1,) * min(x.ndim, 2)))[i.b % 4]
    p = scene.own(shape, f"s{i.b % 4}-{shape}" if i.c % 3 == 0 else "")
    return (lambda: x * p, lambda: p.exp() * x, lambda: x + p, lambda: x / (p.square() + 1.0), lambda: (x - p) * p)[
        i.c // 3 % 5
    ]()


def _layer(scene: Scene, x: Any, i: Instruction) -> Any:
    if not x.ndim:
        return None
    width, out, shared = x.shape[-1], 1 + i.c % 40, i.c % 4 == 0
    found = scene.part

    def named(kind: str) -> str:
        return f"{kind}{width}" if shared else ""

    match i.b % 16:
        case 0 | 1 | 2:
            return found(lambda: nn.Linear(width, width if shared else out), named("l"))(x)
        case 3:
            return found(lambda: nn.LayerNorm(width), named("n"))(x)
        case 4:
            return found(lambda: nn.RMSNorm(width), named("r"))(x)
        case 5 if x.ndim == 2 and len(x) > 1:
            return found(lambda: nn.BatchNorm1d(width), named("b"))(x)
        case 6 if x.ndim == 2:
            return found(lambda: nn.Sequential(nn.Linear(width, out), nn.ReLU(), nn.Linear(out, width)))(x)
        case 7:
            return found(lambda: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()))(x) + x
        case 8 if x.ndim == 3 and x.shape[1] <= 12:
            return found(lambda: nn.GRU(width, 8, batch_first=True))(x)[0]
        case 9 if x.ndim == 3 and width % 2 == 0:
            return found(lambda: nn.MultiheadAttention(width, 2, batch_first=True))(x, x, x)[0]
        case 10 if x.ndim == 3 and width > 2:
            return found(lambda: nn.Conv1d(x.shape[1], 1 + out % 8, 3))(x)
        case 11 if x.ndim == 4 and min(x.shape[2:]) > 2:
            return found(lambda: nn.Sequential(nn.Conv2d(x.shape[1], 4, 3), nn.BatchNorm2d(4), nn.ReLU()))(x)
        case 11 if x.ndim == 2 and width >= 16 and width % 4 == 0:  # of enough channels to be made by tiles
            first = found(lambda: nn.Conv2d(1, 16, 3, padding=1), "images")(x.reshape(len(x), 1, 4, width // 4))
            return found(lambda: nn.Conv2d(16, 15 + out, 3, padding=1))(first.relu()).relu().mean(axis=(2, 3))
        case 12 if x.ndim == 2 and len(x) > 1:
            return found(lambda: nn.Sequential(nn.Linear(width, out), nn.BatchNorm1d(out), nn.SiLU()))(x)
        case 13 if x.ndim == 2:
            places = found(lambda: nn.Embedding(7, width))(cx.minimum(scene.labels, 6))
            return x * places if places.shape == x.shape else places
        case 14 if x.ndim == 2 and width % 4 == 0:
            return x.reshape(len(x), 2, width // 2)
        case 15 if x.ndim == 3:
            return x.reshape(x.shape[0], -1)
        case 15:
            return found(lambda: nn.Sequential(nn.Dropout(0.4), nn.Linear(width, width)))(x)
        case _:
            return found(lambda: nn.PReLU())(x)


def _again(scene: Scene, x: Any, i: Instruction) -> Any:
    """What an instruction before this one did, of the same values: the same expression twice in a step."""
    if not scene.done:
        return None
    place, here, number = i.b % len(scene.done), scene.values, scene.number
    instruction, of, before = scene.done[place]
    if instruction.op in ("again", "loss"):
        return None
    scene.number = place
    scene.values = before
    try:
        return RULES[instruction.op](scene, of, instruction)
    finally:
        scene.values, scene.number = here, number


def _loss(scene: Scene, x: Any, i: Instruction) -> Any:
    """Adds a loss, and gives nothing."""
    y = scene.pick(i.b, lambda y: y.shape == x.shape)
    wanted, mean = y.detach(), x.square().mean()
    rows = x.ndim == 2 and len(x) == scene.program.rows and x.shape[1] > 1
    labels = cx.minimum(scene.labels, x.shape[1] - 1 if rows else 0)
    reduction = ("mean", "sum", "none")[i.b % 3]

    def made() -> Any:
        match i.c % 16:
            case 0 | 1 | 2 if rows:
                smoothing = (0.0, 0.0, 0.1)[i.c % 3]
                return F.cross_entropy(x, labels, reduction=reduction, label_smoothing=smoothing)
            case 3 if x.ndim == 2 and x.shape[0] == x.shape[1]:
                diagonal = cx.arange(len(x))
                return (F.cross_entropy(x, diagonal) + F.cross_entropy(x.T, diagonal)) / 2
            case 4 if rows:
                return F.nll_loss(x.log_softmax(-1), labels, reduction=reduction)
            case 5:
                return F.mse_loss(x, wanted * 0.5, reduction=reduction)
            case 6:
                return F.huber_loss(x, wanted * 0.5, reduction=reduction)
            case 7:
                return F.l1_loss(x, wanted * 0.5, reduction=reduction)
            case 8:
                return F.binary_cross_entropy_with_logits(x, wanted.sigmoid(), reduction=reduction)
            case 9 if x.ndim:
                return F.kl_div(x.log_softmax(-1), wanted.softmax(-1), reduction=reduction)
            case 10 if rows:
                chosen = x.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
                gain = wanted[:, 0]
                gain = (gain - gain.mean()) / (gain.std(correction=0) + 1e-8)
                ratio = (chosen - chosen.detach() * 0.9).exp()
                return -cx.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
            case 11 if rows:
                return -(x.softmax(-1) * x.log_softmax(-1)).sum(-1)
            case 12:
                return F.smooth_l1_loss(x, y * 0.3)
            case 13 if rows:
                return F.multi_margin_loss(x, labels)
            case _:
                return mean

    found = made()
    found = found.mean() if found.ndim else found
    scene.losses.append(found)
    return None


RULES: dict[str, Rule] = {
    "unary": _unary,
    "same": _same,
    "binary": _binary,
    "reduced": _reduced,
    "along": _along,
    "moved": _moved,
    "product": _product,
    "scaled": _scaled,
    "layer": _layer,
    "again": _again,
    "loss": _loss,
}
WEIGHTS = {
    "unary": 6,
    "same": 2,
    "binary": 6,
    "reduced": 3,
    "along": 3,
    "moved": 2,
    "product": 3,
    "scaled": 3,
    "layer": 5,
    "again": 2,
    "loss": 2,
}
