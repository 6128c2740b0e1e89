"""Philox against its published vectors, and what is drawn from it."""

import numpy as np
import pytest

from cyxcore import drawing
from cyxcore.kernels import reference
from cyxcore.kernels.philox import philox4x32, uniform_words


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's kat_vectors, philox4x32 10
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_words(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    assert philox4x32(np.array(counter, np.uint32), key).tolist() == expected


def test_the_uniform_op_counts_blocks_streams_and_steps() -> None:
    out = np.empty((2, 3), np.float32)
    reference.call("uniform", out, [np.array([2**32 + 5, 2**33 + 9], np.uint64)], {"shape": (2, 3), "stream": 4})
    words = [philox4x32(np.array([block, 4, 9, 2], np.uint32), (5, 1)) for block in (0, 1)]
    assert out.reshape(-1).tolist() == [(int(w) >> 8) / 2**24 for w in np.concatenate(words)[:6]]


def test_a_permutation_holds_every_row_once() -> None:
    assert sorted(drawing.permutation(1, 2, 1000).tolist()) == list(range(1000))


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = {tuple(drawing.permutation(seed, epoch, 20).tolist()) for seed in (0, 1) for epoch in (1, 2)}
    assert len(orders) == 4


def test_the_order_of_rows_is_pinned() -> None:
    assert drawing.permutation(7, 1, 8).tolist() == [1, 0, 6, 5, 2, 3, 4, 7]


def test_kaiming_uniform_stays_within_its_bound() -> None:
    values = drawing.initial({"kind": "kaiming_uniform", "fan_in": 16}, (200, 16), "float32", 0, 3)
    assert np.abs(values).max() <= 0.25 and abs(values.std() - 0.25 / 3**0.5) < 0.01


def test_parameters_of_one_seed_differ() -> None:
    rule = {"kind": "uniform", "bound": 1.0}
    assert (
        drawing.initial(rule, (4,), "float32", 0, 0).tolist() != drawing.initial(rule, (4,), "float32", 0, 1).tolist()
    )


@pytest.mark.parametrize("rule", [{"kind": "kaiming_uniform", "fan_in": 3}, {"kind": "normal", "std": 0.02}])
def test_every_device_draws_the_same_weights(rule: dict[str, object]) -> None:
    cpu, reference = (drawing.initial(rule, (7, 3), "float32", 2**31 - 1, 5, name) for name in ("cpu", "reference"))
    assert cpu.tobytes() == reference.tobytes()


def test_a_parameter_without_elements_is_drawn() -> None:
    assert drawing.initial({"kind": "uniform", "bound": 1.0}, (0, 4), "float32", 0, 0).shape == (0, 4)


def test_the_first_weights_are_pinned() -> None:
    values = drawing.initial({"kind": "uniform", "bound": 2.0**23}, (4,), "float32", 7, 1)
    assert values.tolist() == [-7244210.0, -2247165.0, 3403390.0, -2905653.0]


def test_words_do_not_depend_on_how_many_are_drawn() -> None:
    assert uniform_words(1, 2, 3, 5).tolist() == uniform_words(1, 2, 3, 50)[:5].tolist()
