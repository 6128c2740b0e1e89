"""Philox against its published vectors, and what is drawn from it."""

from typing import Any

import numpy as np
import pytest

from cyxcore import drawing, variates
from cyxcore.kernels import cpu, reference
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


SIZES = [0, 1, 7, 255, 1027, 70_001]  # less and more than what a kernel makes at once, and what threads share


KEY = (2**63 + 12345, 2**33 + 9, 2**31 + 3)  # whose words are not all below 2**32


def words_of_64(count: int) -> Any:
    halves = uniform_words(*KEY, 2 * count).astype(np.uint64).reshape(-1, 2)
    return halves[:, 0] << np.uint64(32) | halves[:, 1]


@pytest.mark.parametrize("count", SIZES)
def test_compiled_draws_have_the_bits_of_their_definitions(isa: str, count: int) -> None:
    words, floats, integers = (np.empty(count, dtype) for dtype in (np.uint32, np.float32, np.int64))
    cpu.draw_words(*KEY, words)
    assert words.tobytes() == uniform_words(*KEY, count).tobytes()
    numbers = (uniform_words(*KEY, 12 * count) >> 8) * 2.0**-24
    cpu.draw_reals("twelves", *KEY, 0.3, -2.0, floats)
    assert floats.tobytes() == (-2.0 + 0.3 * (numbers.reshape(-1, 12).sum(-1) - 6.0)).astype(np.float32).tobytes()
    cpu.draw_reals("normals", *KEY, 0.3, -2.0, floats)
    inside = (uniform_words(*KEY, 2 * count) >> 8).reshape(-1, 2) @ [2.0**-24, 2.0**-48] + 2.0**-49
    assert floats.tobytes() == (-2.0 + 0.3 * variates.normal_quantile(inside)).astype(np.float32).tobytes()
    for wide, keys in ((True, words_of_64(count)), (False, words)):
        cpu.draw_order(*KEY, wide, integers)
        assert integers.tolist() == np.argsort(keys, kind="stable").tolist()


@pytest.mark.parametrize("span", [1, 2, 10, 2**32 + 1, 2**63, 2**63 + 1, 2**64 - 1, 2**64])
def test_compiled_integers_are_remainders_of_words(isa: str, span: int) -> None:
    out, words = np.empty(1027, np.int64), words_of_64(1027)
    last = 2**64 - 1 - 2**64 % span
    kept = cpu.draw_integers(*KEY, span % 2**64, 2**64 - 5, out)
    assert kept == bool((words <= np.uint64(last)).all())
    assert out.tolist() == [(int(word) % span - 5 + 2**63) % 2**64 - 2**63 for word in words]


def test_integers_drawn_again_come_from_the_streams_they_always_came_from() -> None:
    drawn = variates.integers(variates.Source(5, 6), 0, 2**63 + 1, 200)  # every second word is drawn again
    source = variates.Source(5, 6)
    words = source.words(200)
    while (over := np.nonzero(words > np.uint64(2**63))[0]).size:
        words[over] = source.words(over.size)
    assert drawn.tobytes() == words.tobytes() and source.stream > 5


def test_words_alike_in_their_upper_bits_keep_their_whole_order() -> None:
    count = 1 << 20  # of the 44 bits kept beside a place some are alike, in one of these seeds
    found = np.empty(count, np.int64)
    for seed in range(200):
        halves = np.empty(2 * count, np.uint32)
        cpu.draw_words(seed, 1, 0, halves)
        words = halves.astype(np.uint64).reshape(-1, 2) @ np.array([2**32, 1], np.uint64)
        upper = np.sort(words >> np.uint64(21))
        if (upper[1:] == upper[:-1]).any():
            break
    cpu.draw_order(seed, 1, 0, True, found)
    assert found.tolist() == np.argsort(words, kind="stable").tolist()


@pytest.mark.parametrize("shape", [(), (3, 5)])
def test_normal_numbers_of_every_device_are_the_same(shape: tuple[int, ...]) -> None:
    for dtype in ("float32", "float64"):
        drawn = [drawing.normal(3, 4, 5, shape, name, std=-0.5, dtype=dtype) for name in ("cpu", "reference")]
        assert drawn[0].dtype == dtype and drawn[0].tobytes() == drawn[1].tobytes()


def test_what_is_drawn_into_must_be_whole_and_of_the_dtype() -> None:
    for out in (np.empty(4, np.int32), np.empty(8, np.int64)[::2]):
        with pytest.raises(ValueError, match="expected a writable C-contiguous array"):
            cpu.draw_order(1, 2, 3, True, out)
