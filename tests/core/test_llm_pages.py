"""Pages of the cache: counted, shared, never given to two."""

import numpy as np

from cyxcore.llm.pages import PAGE_TOKENS, Held, PageBook

PROMPT = list(range(40))


def run(book: PageBook, tokens: list[int], total: int) -> Held:
    held = book.admit(tokens, total)
    assert held is not None
    book.grow(held, total)
    book.computed(held, tokens + [1] * total, len(tokens))
    return held


def test_what_is_reserved_is_there() -> None:
    book = PageBook(4)
    first = book.admit(PROMPT, 50)
    assert first is not None and book.available == 0
    assert book.admit([1], 1) is None
    book.grow(first, 50)
    assert len(set(first.pages)) == 4
    book.release(first)
    assert book.available == 4


def test_prompts_that_begin_alike_share_full_pages() -> None:
    book = PageBook(10)
    first = run(book, PROMPT, 48)
    second = book.admit([*PROMPT[:35], 99, 98], 40)
    assert second is not None and second.pages == first.pages[:2] and second.cached_tokens == 32
    other = book.admit([7, *PROMPT[1:]], 40)
    assert other is not None and other.cached_tokens == 0


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    book = PageBook(10)
    run(book, PROMPT[:32], 40)
    again = book.admit(PROMPT[:32], 40)
    assert again is not None and again.cached_tokens == 16


def test_pages_nobody_uses_keep_what_they_hold_until_they_are_needed() -> None:
    book = PageBook(4)
    book.release(run(book, PROMPT, 41))
    assert book.available == 4
    again = book.admit(PROMPT, 41)
    assert again is not None and again.cached_tokens == 32
    book.release(again)
    book.release(run(book, [5] * 40, 64))  # takes all four
    last = book.admit(PROMPT, 41)
    assert last is not None and last.cached_tokens == 0


def test_no_history_of_sequences_loses_a_page_or_gives_it_to_two() -> None:
    dice = np.random.default_rng(2)
    book, alive = PageBook(24), []
    for _ in range(3000):
        if alive and dice.random() < 0.45:
            book.release(alive.pop(dice.integers(len(alive)))[0])
        else:
            tokens = [int(dice.integers(2)) for _ in range(dice.integers(1, 90))]
            tokens[:64] = [0] * min(64, len(tokens)) if dice.random() < 0.5 else tokens[:64]
            total = len(tokens) + int(dice.integers(30))
            held = book.admit(tokens, total)
            if held is not None:
                shared = len(held.pages)
                book.grow(held, total)
                book.computed(held, tokens + [2] * total, min(len(tokens), total))
                alive.append((held, shared))
        own = [page for held, shared in alive for page in held.pages[held.registered :]]
        assert len(own) == len(set(own)) and 0 <= book.available <= 24
        for held, _ in alive:
            assert len(set(held.pages)) == len(held.pages)
    for held, _ in alive:
        book.release(held)
    assert book.available == 24
    assert PAGE_TOKENS == 16
