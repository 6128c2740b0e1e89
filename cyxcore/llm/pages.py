"""Who has which pages of the cache: reserved before a sequence starts, shared where prompts begin alike.

A full page is known by the hash of all tokens up to its end, so its keys and values serve every sequence that begins
with these tokens. Pages that nobody uses keep what they hold until they are needed.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

PAGE_TOKENS = 16


def pages_for(tokens: int) -> int:
    return -(-tokens // PAGE_TOKENS)


class Held:
    """The pages of one sequence, in its order."""

    def __init__(self, pages: list[int], reserved: int, known: bytes) -> None:
        self.pages = pages
        self.cached_tokens = len(pages) * PAGE_TOKENS
        self.reserved = reserved
        """How many more it may take."""
        self.key = known
        """The hash up to the last page that is registered."""
        self.registered = len(pages)


class PageBook:
    """Counts pages. What is reserved is there when it is taken: no sequence ever waits in its midst."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # known, unused, the first to be given away first
        self._reserved = 0

    @property
    def available(self) -> int:
        """Pages that can be reserved now."""
        return len(self._free) + len(self._idle) - self._reserved

    def admit(self, prompt: Sequence[int], total_tokens: int) -> Held | None:
        """Reserves pages for a sequence of up to `total_tokens`; None where there are not enough now.

        Pages of its prompt that are known are shared, but the last token is always computed: something has to come
        before the first token of the answer.
        """
        shared, key = [], b""
        for number in range((len(prompt) - 1) // PAGE_TOKENS):
            following = _key(key, prompt[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS])
            if following not in self._page_of:
                break
            key = following
            shared.append(self._page_of[key])
        wanted = pages_for(total_tokens) - len(shared)
        woken = [page for page in shared if not self._users[page]]
        if wanted + len(woken) > self.available:
            return None
        for page in woken:
            del self._idle[page]
        for page in shared:
            self._users[page] += 1
        self._reserved += wanted
        return Held(shared, wanted, key)

    def grow(self, held: Held, tokens: int) -> None:
        """Takes pages out of the reservation until `tokens` have room."""
        while len(held.pages) < pages_for(tokens):
            assert held.reserved > 0, "a sequence outgrew its reservation"
            held.reserved -= 1
            self._reserved -= 1
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                del self._page_of[self._key_of.pop(page)]
            self._users[page] = 1
            held.pages.append(page)

    def computed(self, held: Held, tokens: Sequence[int], count: int) -> None:
        """The first `count` tokens have their keys and values: full pages become known."""
        while (held.registered + 1) * PAGE_TOKENS <= count:
            first = held.registered * PAGE_TOKENS
            held.key = _key(held.key, tokens[first : first + PAGE_TOKENS])
            page = held.pages[held.registered]
            if held.key not in self._page_of:
                self._page_of[held.key] = page
                self._key_of[page] = held.key
            held.registered += 1

    def release(self, held: Held) -> None:
        """The sequence ended. The last pages of a prompt are forgotten before its first."""
        self._reserved -= held.reserved
        for page in reversed(held.pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)
        held.pages, held.reserved = [], 0


def _key(before: bytes, tokens: Sequence[int]) -> bytes:
    """A hash that nobody can make collide: pages may be shared between strangers."""
    return hashlib.sha256(before + array("i", tokens).tobytes()).digest()
