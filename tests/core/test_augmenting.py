"""Jobs whose training images are transformed: the same rows for the same step, resumed or not, and clear errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import cyxcore as cx
from cyxcore import transforms as T
from cyxcore.augmenting import Augmented, augmented, mixed_values
from cyxcore.data import DataLoader, TensorDataset, inspect, load
from cyxcore.data.augment import Augment
from cyxcore.errors import CheckpointError, CyxError
from cyxcore.objectives import training_step
from cyxcore.plan import Plan
from cyxcore.spec import BatchMetrics, DataSpec, OptimizerSpec, TrainingSpec
from cyxcore.training import Trainer

RANDOM = np.random.default_rng(1)
IMAGES = RANDOM.integers(0, 17, (40, 1, 6, 6)).astype(np.uint8)
LABELS = (IMAGES.mean((1, 2, 3)) > 8).astype(np.int64)
LAYERS = [
    {"kind": "Conv2d", "out_channels": 3, "kernel_size": 3},
    {"kind": "Flatten"},
    {"kind": "Dropout", "p": 0.1},
    {"kind": "Linear", "out_features": 2},
]
SPEC = DataSpec(format="npz", target="y", white=16.0)
TRAINING = TrainingSpec(epochs=2, batch_size=12, seed=4, optimizer=OptimizerSpec(learning_rate=0.01))
SHIFTED: list[T.AnyTransform] = [T.RandomCrop(6, padding=1), T.ColorJitter(0.3, 0.2)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "d.npz", x=IMAGES, y=LABELS)
    return tmp_path / "d.npz"


def trainer(path: Path, augment: list[Any], resume: Path | None = None, **training: Any) -> Trainer:
    data = load(path, replace(SPEC, augment=augment), loss="cross_entropy", seed=4)
    graph = cx.build(input_shape=[1, 6, 6], layers=LAYERS)
    return Trainer.of_job(graph, data, replace(TRAINING, **training), resume=resume)


def weights(run: Trainer) -> dict[str, bytes]:
    for _ in run.run():
        pass
    return {name: np.asarray(value).tobytes() for name, value in run.weights.items()}


@pytest.mark.parametrize(
    "augment", [SHIFTED, [T.Mixup(0.5)], [T.RandomHorizontalFlip(), T.CutMix()], [T.RandAugment()]]
)
def test_a_run_is_the_same_to_the_bit_interrupted_or_not(images: Path, tmp_path: Path, augment: list[Any]) -> None:
    whole = weights(trainer(images, augment))
    assert whole == weights(trainer(images, augment)) and whole != weights(trainer(images, []))
    first = trainer(images, augment)
    for said in first.run():
        if isinstance(said, BatchMetrics) and said.step == 2:
            first.checkpoint(tmp_path / "c.safetensors")
            break
    assert weights(trainer(images, augment, tmp_path / "c.safetensors")) == whole


def test_a_checkpoint_of_other_transforms_is_refused(images: Path, tmp_path: Path) -> None:
    trainer(images, SHIFTED).checkpoint(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="belongs to another run.*augmented by"):
        trainer(images, [], tmp_path / "c.safetensors")


def test_a_loader_of_the_same_seed_augments_as_the_run_does(images: Path) -> None:
    data = load(images, replace(SPEC, augment=SHIFTED), seed=4)
    loader = DataLoader(
        TensorDataset(data.x_train, data.y_train), 12, shuffle=True, seed=4, augment=T.Compose(SHIFTED, white=16.0)
    )
    order = cx.data.RandomSampler(data.x_train, seed=4).rows(1)
    assert data.augment is not None
    for step, (x, y) in enumerate(loader, 1):
        rows = order[(step - 1) * 12 : step * 12]
        ours = augmented(data.augment, data.x_train[rows], data.y_train[rows], 4, step)
        assert (x.numpy() == ours.x).all() and (y.numpy() == ours.y).all()


def test_flat_rows_are_images_of_a_shape(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 12)
    augment = Augment((T.RandomHorizontalFlip(1.0),), (1, 3, 4), 255.0)
    out = augmented(augment, x, np.zeros(2), 0, 1).x
    assert out.shape == (2, 12) and (out.reshape(2, 3, 4) == x.reshape(2, 3, 4)[..., ::-1]).all()


def test_the_loss_of_mixed_rows_is_the_mixture_of_the_losses() -> None:
    graph = cx.build(input_shape=[4], layers=[{"kind": "Linear", "out_features": 3}])
    spec = TrainingSpec(loss="cross_entropy", label_smoothing=0.1, optimizer=OptimizerSpec(name="sgd"))
    x, first, second = RANDOM.normal(size=(5, 4)), np.array([0, 1, 2, 0, 1]), np.array([2, 2, 2, 1, 1])
    share = np.array([0.0, 0.25, 0.5, 0.75, 1.0], np.float32)
    state = {"0.weight": RANDOM.normal(size=(3, 4)).astype(np.float32), "0.bias": np.zeros(3, np.float32)}

    def loss(mixed: bool, **inputs: Any) -> float:
        step = training_step(graph, 5, spec, mixed)
        plan = Plan(step, {name: value.copy() for name, value in state.items()})
        for name, value in {**inputs, "learning_rate": 0.0, "step": 1}.items():
            plan.inputs[name][...] = value
        plan.inputs[graph.nodes[graph.input].attrs["name"]][...] = x
        plan.run()
        return float(plan.outputs[0])

    logits = x @ state["0.weight"].T
    scores = logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def rows(target: np.ndarray) -> np.ndarray:
        return -0.9 * scores[np.arange(5), target] - 0.1 * scores.mean(1)

    expected = (share * rows(first) + (1 - share) * rows(second)).mean()
    assert loss(True, target=first, second=second, share=share) == pytest.approx(expected, rel=1e-5)
    assert loss(True, target=first, second=second, share=1.0) == pytest.approx(loss(False, target=first), rel=1e-6)


def test_numbers_to_predict_are_mixed_themselves() -> None:
    rows = Augmented(np.zeros((2, 1)), np.array([[1.0], [3.0]]), np.array([[3.0], [1.0]]), np.array([0.75, 0.5]))
    assert mixed_values(rows).tolist() == [[1.5], [2.0]]


def test_statistics_and_held_out_rows_stay_as_they_are(images: Path) -> None:
    plain, changed = load(images, SPEC), load(images, replace(SPEC, augment=SHIFTED))
    assert (plain.x_train == changed.x_train).all() and (plain.x_val == changed.x_val).all()


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"augment": [T.RandomCrop(4)]},
        r"data.augment: expected images of shape \[1, 6, 6\] again, .* got \[1, 4, 4\]; end",
    ),
    ({"augment": [T.RandomCrop(9, padding=1)]}, "data.augment: RandomCrop: expected a size within 8 x 8"),
    ({"augment": [T.Normalize((0.5,), (0.5,))]}, r"data.augment\[0\]: Normalize: only training rows .* data.normalize"),
    ({"augment": [T.Mixup(), T.CutMix()]}, "data.augment: expected at most one of Mixup and CutMix"),
    (
        {"augment": [T.RandomInvert()], "white": 10.0},
        r"pixels of 0 to 10 \(data.white\), .* got values of 0 to 16; set",
    ),
    ({"augment": [T.RandomInvert()], "white": 2000.0}, "pixels of 0 to 2000 .* got values of 0 to 16"),
    ({"augment": [T.Cutout(2, value=0.5)], "white": 2000.0}, "pixels of 0 to 2000 .* and value"),
    ({"augment": [T.RandomRotation(5, fill=0.5)], "white": 10.0}, "pixels of 0 to 10 .* got values of 0 to 16"),
    ({"augment": [T.RandomEqualize()], "white": 1e-44}, "data.augment: Compose: expected white >= 1e-30, got 1e-44"),
    (
        {"augment": [T.Resize(60_000), T.Resize(6)]},
        r"data.augment\[0\]: Resize: expected .* 196,608 numbers on the way",
    ),
    (
        {"augment": [T.RandomVerticalFlip(), T.RandomCrop(6, padding=9000)]},
        r"augment\[1\]: RandomCrop: .* got \[1, 18006",
    ),
    ({"augment": [T.Pad(300)] * 2 + [T.CenterCrop(6)]}, r"data.augment\[0\]: Pad: .* \(rows have 36\)"),
    ({"image_shape": (1, 6, 6)}, "data.image_shape: expected data.augment beside it"),
    ({"augment": SHIFTED, "image_shape": (3, 6, 6)}, r"got \[3, 6, 6\] for rows of \[1, 6, 6\]; correct it"),
]


@pytest.mark.parametrize("change, said", REFUSED)
def test_transforms_that_do_not_fit_the_data_are_refused_by_both_sides(
    images: Path, change: dict[str, Any], said: str
) -> None:
    for read in (inspect, load):
        with pytest.raises(CyxError, match=said):
            read(images, replace(SPEC, **change))


def test_images_may_become_larger_on_the_way(images: Path) -> None:
    spec = replace(SPEC, augment=[T.Resize(256), T.RandomRotation(9), T.Resize(6)])
    assert inspect(images, spec).input_shape == [1, 6, 6]


def test_rows_that_are_no_images_are_told_how_to_become_some(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,c,d,label\n1,2,3,4,0\n5,6,7,8,1\n1,2,3,4,0\n5,6,7,8,1\n")
    spec = DataSpec(augment=[T.RandomHorizontalFlip()])
    with pytest.raises(
        CyxError, match=r"got \[4\] for rows of \[4\]; set data.image_shape = \[channels, height, width\]"
    ):
        inspect(tmp_path / "t.csv", spec)
    assert inspect(tmp_path / "t.csv", replace(spec, image_shape=(1, 2, 2))).rows == 4
