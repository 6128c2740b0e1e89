"""A stream in memory that loses answers, is late, and says things twice, by the dice of a seed.

It keeps the rules of the real one (tests in test_eventlog.py hold both to them): one order for all, compare and swap
per subject, batches that are stored whole or not at all.
"""

import asyncio

from cyxnet import subjects
from cyxnet.outcomes import AppendUnknown, Conflict, Stored


class MemoryLog:
    """What EventLog uses of a Bus. dice: random.Random that decides on trouble; None for none."""

    def __init__(self, dice=None):
        self.messages = []
        self.dice = dice
        self.config = None
        self.batches = 0
        self._followers = []
        self._late = set()

    # -- what the dice do ----------------------------------------------------------------------------

    def _chance(self, share):
        return self.dice is not None and self.dice.random() < share

    async def _some_time(self):
        for _ in range(self.dice.randrange(6) if self.dice else 1):
            await asyncio.sleep(0)

    def _later(self, work):
        task = asyncio.get_running_loop().create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    # -- the stream ----------------------------------------------------------------------------------

    def _store(self, messages):
        for subject, _, expected_seq in messages:
            found = self._last(subject)
            if expected_seq is not None and expected_seq != (found.seq if found else 0):
                raise Conflict(f"{subject}: wrong last sequence")
        for subject, payload, _ in messages:
            stored = Stored(subject, len(self.messages) + 1, payload)
            self.messages.append(stored)
            for queue in self._followers:
                queue.put_nowait(stored)
                if self._chance(0.1):
                    queue.put_nowait(stored)  # a follower of the real bus never hears it twice; a log could bear it
        return list(range(len(self.messages) - len(messages) + 1, len(self.messages) + 1))

    def _last(self, subject):
        return next((stored for stored in reversed(self.messages) if stored.subject == subject), None)

    async def _arrive_later(self, messages):
        await self._some_time()
        await self._some_time()
        try:
            self._store(messages)
        except Conflict:
            pass  # nobody hears it

    async def append_all(self, messages):
        self.batches += len(messages) > 1
        await self._some_time()
        if self._chance(0.15):
            raise AppendUnknown("lost on the way there")
        if self._chance(0.15):
            self._later(self._arrive_later(messages))
            raise AppendUnknown("late")
        seqs = self._store(messages)
        await self._some_time()
        if self._chance(0.2):
            raise AppendUnknown("lost on the way back")
        return seqs

    async def append(self, subject, payload, expected_seq=None):
        [seq] = await self.append_all([(subject, payload, expected_seq)])
        return seq

    async def last(self, stream, subject, *, any_replica=False):
        await self._some_time()
        return self._last(subject)

    async def at(self, stream, seq):
        return self.messages[seq - 1] if 0 < seq <= len(self.messages) else None

    async def last_seq(self, stream):
        await self._some_time()
        return len(self.messages)

    async def ensure_stream(self, name, stream_subjects, **options):
        assert (name, stream_subjects) == (subjects.EVENTS, [subjects.EVENT_SUBJECTS])
        return self.config

    async def follow(self, stream, subject, after_seq, handler, rewound, **options):
        queue = asyncio.Queue()
        for stored in self.messages[after_seq:]:
            queue.put_nowait(stored)
        self._followers.append(queue)

        async def deliver():
            seen = after_seq
            while True:
                stored = await queue.get()
                await self._some_time()
                if stored.seq > seen:
                    seen = stored.seq
                    await handler(stored)

        self._later(deliver())

    async def close(self):
        for task in list(self._late):
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)
