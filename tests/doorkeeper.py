"""A door without a central behind it: lets whoever proves to be somebody into a real broker. For tests of the rest."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from cyxcentral.admission import Admitted, Proof, Refused, decide
from cyxcentral.door import Door
from cyxnet.bus import Bus
from cyxnet.credentials import as_system
from cyxnet.identity import Identity

CENTRAL = Identity(b"the central of tests, 32 bytes..")  # with Passwords.fresh(CENTRAL) a broker asks it
SESSION_S = 900
DEPLOYMENT = "small-0123456789ab"

Decide = Callable[[Proof], Admitted | Refused]


def anybody(proof: Proof) -> Admitted | Refused:
    """A node may answer for DEPLOYMENT, whichever run it names."""
    now_ms = time.time_ns() // 1_000_000
    return decide(proof, lambda node_id: None, (), SESSION_S, now_ms, serves=lambda *run: DEPLOYMENT)


async def opened(url: str, decide: Decide = anybody, **options: int) -> tuple[Bus, Door]:
    """A door that is open; close the bus when it is over."""
    system = await Bus.connect(url, name="test-door", credentials=as_system(CENTRAL))
    door = Door(system, CENTRAL, decide, **options)
    await door.start()
    door.open()
    return system, door


@contextlib.contextmanager
def door_of(url: str) -> Iterator[None]:
    """The same in a thread of its own, for tests with a loop and without. Outlives a restart of the broker."""
    ready, over = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        system, _ = await opened(url)
        ready.set()
        await over.wait()
        await system.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
