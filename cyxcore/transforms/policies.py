"""Operations drawn for each image: AutoAugment, RandAugment and TrivialAugmentWide.

An operation has a strength of 0 … 1 of its limit. The pairs of AutoAugment are those its authors found (E. Cubuk et
al., "AutoAugment: learning augmentation policies from data", CVPR 2019, tables 7 to 9): "Op probability level", where
level 9 is full strength.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cyxcore.transforms import colour, geometry
from cyxcore.transforms.draws import Draws

Array = np.ndarray[Any, Any]


class Scene(NamedTuple):
    """What an operation needs to know besides images and amounts."""

    white: float
    fill: float


class Op(NamedTuple):
    """run(images, amount of each, scene). usual, wide: the amount at full strength; None where there is none.

    signed: either way.
    """

    run: Callable[[Array, Array, Scene], Array]
    usual: float | None = None
    wide: float | None = None
    signed: bool = False


def _sheared_x(x: Array, amount: Array, scene: Scene) -> Array:
    return geometry.warp(x, geometry.affine(len(x), b=amount), scene.fill, "bilinear")


def _sheared_y(x: Array, amount: Array, scene: Scene) -> Array:
    return geometry.warp(x, geometry.affine(len(x), d=amount), scene.fill, "bilinear")


def _moved_x(x: Array, amount: Array, scene: Scene) -> Array:
    return geometry.warp(x, geometry.affine(len(x), c=amount * x.shape[3]), scene.fill, "nearest")


def _moved_y(x: Array, amount: Array, scene: Scene) -> Array:
    return geometry.warp(x, geometry.affine(len(x), f=amount * x.shape[2]), scene.fill, "nearest")


def _rotated(x: Array, amount: Array, scene: Scene) -> Array:
    return geometry.warp(x, geometry.turned(x.shape, amount), scene.fill, "bilinear")


# The limits of translation in the papers are 150 pixels of 331 and 32 of those of CIFAR: shares of the side here.
OPS: dict[str, Op] = {
    "Identity": Op(lambda x, amount, scene: x),
    "ShearX": Op(_sheared_x, 0.3, 0.99, signed=True),
    "ShearY": Op(_sheared_y, 0.3, 0.99, signed=True),
    "TranslateX": Op(_moved_x, 150 / 331, 1.0, signed=True),
    "TranslateY": Op(_moved_y, 150 / 331, 1.0, signed=True),
    "Rotate": Op(_rotated, 30.0, 135.0, signed=True),
    "Brightness": Op(lambda x, amount, s: colour.brightness(x, 1.0 + amount, s.white), 0.9, 0.99, signed=True),
    "Color": Op(lambda x, amount, s: colour.saturation(x, 1.0 + amount, s.white), 0.9, 0.99, signed=True),
    "Contrast": Op(lambda x, amount, s: colour.contrast(x, 1.0 + amount, s.white), 0.9, 0.99, signed=True),
    "Sharpness": Op(lambda x, amount, s: colour.sharpness(x, 1.0 + amount, s.white), 0.9, 0.99, signed=True),
    "Posterize": Op(lambda x, amount, s: colour.posterize(x, 8 - np.rint(amount), s.white), 4.0, 6.0),
    "Solarize": Op(lambda x, amount, s: colour.solarize(x, (1.0 - amount) * s.white, s.white), 1.0, 1.0),
    "AutoContrast": Op(lambda x, amount, s: colour.autocontrast(x, s.white)),
    "Equalize": Op(lambda x, amount, s: colour.equalize(x, s.white)),
    "Invert": Op(lambda x, amount, s: colour.invert(x, s.white)),
}
DRAWN = [name for name in OPS if name != "Invert"]  # by RandAugment and TrivialAugmentWide

_FOUND = {
    "cifar10": """Invert .1 0, Contrast .2 6; Rotate .7 2, TranslateX .3 9; Sharpness .8 1, Sharpness .9 3;
        ShearY .5 8, TranslateY .7 9; AutoContrast .5 0, Equalize .9 0; ShearY .2 7, Posterize .3 7;
        Color .4 3, Brightness .6 7; Sharpness .3 9, Brightness .7 9; Equalize .6 0, Equalize .5 0;
        Contrast .6 7, Sharpness .6 5; Color .7 7, TranslateX .5 8; Equalize .3 0, AutoContrast .4 0;
        TranslateY .4 3, Sharpness .2 6; Brightness .9 6, Color .2 8; Solarize .5 2, Invert 0 0;
        Equalize .2 0, AutoContrast .6 0; Equalize .2 0, Equalize .6 0; Color .9 9, Equalize .6 0;
        AutoContrast .8 0, Solarize .2 8; Brightness .1 3, Color .7 0; Solarize .4 5, AutoContrast .9 0;
        TranslateY .9 9, TranslateY .7 9; AutoContrast .9 0, Solarize .8 3; Equalize .8 0, Invert .1 0;
        TranslateY .7 9, AutoContrast .9 0""",
    "svhn": """ShearX .9 4, Invert .2 0; ShearY .9 8, Invert .7 0; Equalize .6 0, Solarize .6 6;
        Invert .9 0, Equalize .6 0; Equalize .6 0, Rotate .9 3; ShearX .9 4, AutoContrast .8 0;
        ShearY .9 8, Invert .4 0; ShearY .9 5, Solarize .2 6; Invert .9 0, AutoContrast .8 0;
        Equalize .6 0, Rotate .9 3; ShearX .9 4, Solarize .3 3; ShearY .8 8, Invert .7 0;
        Equalize .9 0, TranslateY .6 6; Invert .9 0, Equalize .6 0; Contrast .3 3, Rotate .8 4;
        Invert .8 0, TranslateY 0 2; ShearY .7 6, Solarize .4 8; Invert .6 0, Rotate .8 4;
        ShearY .3 7, TranslateX .9 3; ShearX .1 6, Invert .6 0; Solarize .7 2, TranslateY .6 7;
        ShearY .8 4, Invert .8 0; ShearX .7 9, TranslateY .8 3; ShearY .8 5, AutoContrast .7 0;
        ShearX .7 2, Invert .1 0""",
    "imagenet": """Posterize .4 8, Rotate .6 9; Solarize .6 5, AutoContrast .6 0; Equalize .8 0, Equalize .6 0;
        Posterize .6 7, Posterize .6 6; Equalize .4 0, Solarize .2 4; Equalize .4 0, Rotate .8 8;
        Solarize .6 3, Equalize .6 0; Posterize .8 5, Equalize 1 0; Rotate .2 3, Solarize .6 8;
        Equalize .6 0, Posterize .4 6; Rotate .8 8, Color .4 0; Rotate .4 9, Equalize .6 0;
        Equalize 0 0, Equalize .8 0; Invert .6 0, Equalize 1 0; Color .6 4, Contrast 1 8;
        Rotate .8 8, Color 1 2; Color .8 8, Solarize .8 7; Sharpness .4 7, Invert .6 0;
        ShearX .6 5, Equalize 1 0; Color .4 0, Equalize .6 0; Equalize .4 0, Solarize .2 4;
        Solarize .6 5, AutoContrast .6 0; Invert .6 0, Equalize 1 0; Color .6 4, Contrast 1 8;
        Equalize .8 0, Equalize .6 0""",
}


class Step(NamedTuple):
    op: str
    p: float
    strength: float


POLICIES: dict[str, list[list[Step]]] = {
    name: [
        [Step(op, float(p), int(level) / 9) for op, p, level in (step.split() for step in pair.split(","))]
        for pair in text.split(";")
    ]
    for name, text in _FOUND.items()
}


def perform(x: Array, names: list[str], which: Array, strengths: Array, limits: str, draws: Draws, s: Scene) -> Array:
    """On each row the operation names[which[row]] of its strength; which < 0: none. limits: usual or wide."""
    out, signs = x.copy(), draws.signs()
    for place, name in enumerate(names):
        rows = np.flatnonzero(which == place)
        if rows.size:
            op = OPS[name]
            amount = strengths[rows] * (getattr(op, limits) or 0.0)
            out[rows] = op.run(x[rows], amount * signs[rows] if op.signed else amount, s)
    return out


def rand_augment(x: Array, num_ops: int, magnitude: int, draws: Draws, scene: Scene) -> Array:
    strengths = np.full(len(x), magnitude / 30)
    for _ in range(num_ops):
        x = perform(x, DRAWN, draws.below(len(DRAWN)), strengths, "usual", draws, scene)
    return x


def trivial_augment_wide(x: Array, draws: Draws, scene: Scene) -> Array:
    which, strengths = draws.below(len(DRAWN)), draws.below(31) / 30
    return perform(x, DRAWN, which, strengths, "wide", draws, scene)


def auto_augment(x: Array, policy: str, draws: Draws, scene: Scene) -> Array:
    pairs, names = POLICIES[policy], list(OPS)
    drawn = draws.below(len(pairs))
    for place in range(2):
        steps = [pair[place] for pair in pairs]
        performed = draws.uniform() < np.array([step.p for step in steps])[drawn]
        which = np.where(performed, np.array([names.index(step.op) for step in steps])[drawn], -1)
        x = perform(x, names, which, np.array([step.strength for step in steps])[drawn], "usual", draws, scene)
    return x
