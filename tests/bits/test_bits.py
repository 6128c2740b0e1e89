"""A compiled step is the plain one to the last bit: some random steps. `python -m tests.bits` runs any number."""

import pytest

from cyxcore import steps
from cyxcore.symbols import Builder
from tests.bits.programs import difference, drawn, setting_of, shrunk


@pytest.mark.parametrize("start", range(0, 160, 40))
def test_random_steps_are_the_same_compiled(start: int) -> None:
    differ = {seed: found for seed in range(start, start + 40) if (found := difference(drawn(seed), setting_of(seed)))}
    assert not differ


def test_gradients_of_a_step_whose_equal_calls_were_merged_too_early_are_found_and_shrunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "Builder", lambda **options: Builder(**{**options, "merging": True}))

    short = (seed for seed in range(200) if len(drawn(seed).body) < 8)  # shrinking tries hundreds of programs
    seed = next(seed for seed in short if difference(drawn(seed), setting_of(seed)))
    small = shrunk(drawn(seed), lambda program: bool(difference(program, setting_of(seed))))
    assert len(small.body) <= 3
