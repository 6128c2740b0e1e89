"""Which run gets which NVIDIA device. Pure: readings and runs are arguments, and nothing is asked of a driver.

A device has one run at a time: two would share its memory, and neither could be promised any. One that other programs
have filled is passed over. A process uses the first device that it sees (docs/gpu.md), so its run is told the uuid,
which CUDA_VISIBLE_DEVICES takes: the numbers of nvidia-smi and of CUDA are not the same.
"""

from collections.abc import Callable, Collection, Iterable

from msgspec import Struct
from msgspec.structs import replace

from cyxnode.errors import NodeError

LEAST_FREE_BYTES = 512 * 2**20  # of a device that is given away: what its driver and libraries take, and a small model
JOBS_REMEMBERED = 256


class Device(Struct, frozen=True, kw_only=True):
    """One NVIDIA device as it was read last. index: by which nvidia-smi calls it."""

    index: int
    uuid: str
    memory_bytes: int
    free_bytes: int
    busy_percent: float = 0.0


class Given(Struct, frozen=True):
    job_id: str
    uuid: str


class DevicePool(Struct, frozen=True, kw_only=True):
    """The devices of a node, and how it chooses. Who has which is known from the runs.

    policy: a name in POLICIES. given: what was given to whom, the newest last.
    """

    devices: tuple[Device, ...] = ()
    policy: str = "least-utilized"
    given: tuple[Given, ...] = ()

    def choose(self, job_id: str, held: Collection[str], needed_bytes: int = 0) -> "tuple[DevicePool, Device] | str":
        """A device for the job and the pool that knows of it; or why there is none.

        held: uuids that runs have. needed_bytes: of the memory of a device, that must be free.
        """
        needed_bytes = max(needed_bytes, LEAST_FREE_BYTES)
        free = [device for device in self.devices if device.uuid not in held]
        roomy = [device for device in free if device.free_bytes >= needed_bytes]
        if not free:
            return f"no free device: {len(held)} of {len(self.devices)} are busy"
        if not roomy:
            most = max(device.free_bytes for device in free)
            return f"no device with {needed_bytes >> 20} MiB free: other programs have left {most >> 20} at most"
        device = POLICIES[self.policy](self, job_id, roomy)
        given = (*(each for each in self.given if each.job_id != job_id), Given(job_id, device.uuid))
        return replace(self, given=given[-JOBS_REMEMBERED:]), device

    def read(self, readings: Iterable[Device]) -> "DevicePool":
        """The same devices as they are read now; one that is not read stays as it was."""
        news = {device.uuid: device for device in readings}
        return replace(self, devices=tuple(news.get(device.uuid, device) for device in self.devices))


Policy = Callable[[DevicePool, str, list[Device]], Device]


def _first(pool: DevicePool, job_id: str, free: list[Device]) -> Device:
    return free[0]


def _round_robin(pool: DevicePool, job_id: str, free: list[Device]) -> Device:
    """The next one behind the one that was given away last."""
    places = {device.uuid: place for place, device in enumerate(pool.devices)}
    last = places[pool.given[-1].uuid] if pool.given else -1
    return min(free, key=lambda device: (places[device.uuid] - last - 1) % len(places))


def _most_memory(pool: DevicePool, job_id: str, free: list[Device]) -> Device:
    return max(free, key=lambda device: device.free_bytes)


def _least_utilized(pool: DevicePool, job_id: str, free: list[Device]) -> Device:
    """By other programs. Of those alike, the one with the most memory."""
    return min(free, key=lambda device: (device.busy_percent, -device.free_bytes))


def _affinity(pool: DevicePool, job_id: str, free: list[Device]) -> Device:
    """The one that the job had before: kernels are compiled for a kind of card, and bits depend on it."""
    before = [each.uuid for each in pool.given if each.job_id == job_id]
    return next((device for device in free if device.uuid in before), None) or _least_utilized(pool, job_id, free)


POLICIES: dict[str, Policy] = {  # each chooses among free devices, of which there is one at least; ties: the first
    "least-utilized": _least_utilized,
    "most-memory": _most_memory,
    "round-robin": _round_robin,
    "affinity": _affinity,
    "first": _first,
}


def chosen(devices: Iterable[Device], said: str | None) -> tuple[Device, ...]:
    """The devices that an operator names: nvidia-smi's numbers or the beginnings of uuids, with commas between.

    None: all. "", "none" and "-1": none. Raises NodeError for what is none of them, or named twice.
    """
    known = tuple(devices)
    if said is None:
        return known
    if said.strip() in ("", "none", "-1"):
        return ()
    found: list[Device] = []
    for word in (word.strip() for word in said.split(",")):
        meant = [each for each in known if word == str(each.index) or (word and each.uuid.startswith(word))]
        if len(meant) != 1 or meant[0] in found:
            here = ", ".join(f"{each.index} ({each.uuid})" for each in known) or "none"
            raise NodeError(f"GPUs {said!r}: {word!r} is not one more device of this machine, which has {here}")
        found += meant
    return tuple(found)
