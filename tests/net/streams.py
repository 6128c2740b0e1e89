"""What JetStream says of a replicated stream."""

import contextlib
import json

from cyxnet.bus import BusError


async def cluster_of(bus, stream):
    """What JetStream says of the replicas of a stream; empty while nobody leads."""
    with contextlib.suppress(BusError):
        said, _ = await bus.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout_s=2.0)
        return json.loads(said).get("cluster", {})
    return {}


async def leader_of(bus, stream):
    """The name of the part that leads a stream now."""
    while not (leader := (await cluster_of(bus, stream)).get("leader")):
        pass
    return leader.replace("cyx", "broker")


async def in_sync(bus, stream, replicas):
    """Wait until every replica of a stream has everything."""
    while True:
        peers = (await cluster_of(bus, stream)).get("replicas", [])
        if len(peers) == replicas - 1 and all(peer["current"] and not peer.get("offline") for peer in peers):
            return
