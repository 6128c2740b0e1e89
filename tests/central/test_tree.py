"""The ordered map is a map in order, balanced, and every summary is true."""

import random

import pytest

from cyxcentral import tree


def largest(value, key, before, after):
    """Summary of the tests: the largest value of a subtree."""
    return max(each for each in (value, before, after) if each is not None)


def check(at):
    """(size, depth) of a tree in which everything is as it should be."""
    if at is None:
        return 0, 0
    (before, left), (after, right) = check(at.before), check(at.after)
    assert at.size == before + after + 1
    assert before + after <= 1 or max(before, after) <= tree.DELTA * min(before, after)
    parts = [at.value, *(side.summary for side in (at.before, at.after) if side)]
    assert at.summary == max(parts)
    return at.size, max(left, right) + 1


@pytest.mark.parametrize("keys", [40, 1000])
def test_after_any_changes_it_is_the_map_in_order_and_balanced(keys):
    dice, at, expected = random.Random(keys), None, {}
    for step in range(3000):
        key = dice.randrange(keys)
        if key in expected and dice.random() < 0.55:
            del expected[key]
            at = tree.drop(at, key, largest)
        else:
            expected[key] = dice.random()
            at = tree.put(at, key, expected[key], largest)
        if step % 50 == 0:
            check(at)
            assert list(tree.walk(at)) == sorted(expected.items())


def test_sorted_keys_make_no_list():
    at = None
    for key in range(2000):
        at = tree.put(at, key, key, largest)
    assert check(at)[1] <= 2 * 11


def test_built_at_once_it_is_as_flat_as_can_be():
    at = tree.built([(key, key) for key in range(1000)], largest)
    assert check(at) == (1000, 10)
    assert tree.built([], largest) is None


def test_a_key_that_is_not_there_cannot_be_dropped():
    with pytest.raises(KeyError):
        tree.drop(tree.put(None, 1, 1, largest), 2, largest)


def test_the_tree_before_a_change_is_still_there():
    before = tree.built([(key, key) for key in range(10)], largest)
    tree.drop(before, 3, largest)
    assert [key for key, _ in tree.walk(before)] == list(range(10))


def test_keys_below_a_key_are_counted():
    at = tree.built([(key, key) for key in range(0, 100, 2)], largest)
    assert [tree.count_below(at, key) for key in (0, 1, 50, 200)] == [0, 1, 25, 50]
