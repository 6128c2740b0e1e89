"""Arrays of a plan share one arena: those that are there at the same time lie apart, and little is wasted."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cyxcore.placement import Arena, Block, Slot, lay_out


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 500), st.integers(0, 20)), max_size=60))
def test_the_arena_never_hands_out_a_byte_twice(actions: list[tuple[bool, int, int]]) -> None:
    arena, held = Arena(), []
    for take, size, which in actions:
        if take or not held:
            slot = arena.take(size)
            assert slot.offset % 64 == 0 and slot.bytes >= size and slot.offset + slot.bytes <= arena.end
            assert all(
                slot.offset + slot.bytes <= other.offset or other.offset + other.bytes <= slot.offset for other in held
            )
            held.append(slot)
        else:
            arena.give(held.pop(which % len(held)))
    for slot in held:
        arena.give(slot)
    assert arena.free in ([], [(0, arena.end)])


def apart(blocks: list[Block], slots: list[Slot]) -> bool:
    return all(
        one.first > other.last
        or other.first > one.last
        or sum(slot) <= other_slot.offset
        or sum(other_slot) <= slot.offset
        for number, (one, slot) in enumerate(zip(blocks, slots, strict=True))
        for other, other_slot in zip(blocks[:number], slots[:number], strict=True)
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 64, 100, 640, 4096, 9000]), st.integers(0, 30), st.integers(0, 30))))
def test_what_is_there_at_the_same_time_lies_apart(drawn: list[tuple[int, int, int]]) -> None:
    blocks = [Block(size, min(a, b), max(a, b)) for size, a, b in drawn]
    slots, end = lay_out(blocks)
    assert apart(blocks, slots)
    assert all(slot.offset % 64 == 0 and slot.bytes >= block.bytes for block, slot in zip(blocks, slots, strict=True))
    assert end == max(map(sum, slots), default=0)


def test_a_large_block_finds_its_place_free_when_it_comes() -> None:
    """Small ones that stay take the gap of one of 100; as they come, the next of 100 would lie behind them."""
    blocks = [Block(64 * 100, 0, 1), Block(64 * 10, 1, 9), Block(64 * 30, 2, 9), Block(64 * 100, 3, 9)]
    slots, end = lay_out(blocks)
    assert apart(blocks, slots) and end == 64 * 140


def test_hardly_more_is_taken_than_lives_at_once_in_a_training_step() -> None:
    """What 20 layers keep, smaller and smaller, and what each writes on its way back."""
    blocks = [Block(64 * (100 - 3 * layer), layer, 40 - layer) for layer in range(20)]
    blocks += [Block(64 * (100 - 3 * layer), 40 - layer, 41 - layer) for layer in range(20)]
    blocks += [Block(64, layer, 45) for layer in range(40)]
    slots, end = lay_out(blocks)
    at_once = [sum(block.bytes for block in blocks if block.first <= step <= block.last) for step in range(46)]
    assert apart(blocks, slots) and max(at_once) <= end <= 1.05 * max(at_once)


def test_many_blocks_are_laid_out_too() -> None:
    blocks = [Block(64 * (1 + number % 7), number // 3, number // 3 + number % 11) for number in range(1500)]
    blocks.append(Block(64 * 50, 480, 490))
    slots, end = lay_out(blocks)
    at_once = [sum(block.bytes for block in blocks if block.first <= step <= block.last) for step in range(520)]
    assert apart(blocks, slots) and end <= 1.2 * max(at_once)
