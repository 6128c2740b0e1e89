"""Who may have the bytes of an artifact: a digest alone opens nothing.

  who sent them all                            noted in the store, beside the bytes (cyxcentral/blobs.py)
  whose job names them                         its data, its model, its checkpoints: in the world
  the node that holds the lease of a job       what that job needs, for as long
  an operator, who says that he asks as one

Everybody else is told what he would be told if they were not here.
"""

from collections.abc import Collection

from cyxcentral.blobs import BlobError, Blobs, NotStored
from cyxcentral.eventlog import EventLog
from cyxnet.messages import ArtifactManifest, ArtifactRefRequest


class Fetches:
    def __init__(self, events: EventLog, blobs: Blobs, operators: Collection[str]):
        self._events = events
        self._blobs = blobs
        self._operators = operators

    async def manifest(self, caller: str, ask: ArtifactRefRequest) -> ArtifactManifest:
        """The chunks of an artifact. Raises NotStored, also for who may not have it."""
        if not await self._may(caller, ask.sha256, ask.as_operator):
            raise NotStored(f"no artifact {ask.sha256} is stored here")
        return await self._blobs.manifest(ask.sha256)

    async def owned(self, caller: str, sha256: str, size_bytes: int | None = None) -> ArtifactManifest:
        """The chunks of an artifact that a job of this caller is to name. Raises NotStored.

        What a lease opens does not count: a job opens for ever, and the lease ends.
        size_bytes: what the job says of it. Raises BlobError for another: nodes that fetch it would seem to fail.
        """
        if not await self._owns(caller, sha256):
            raise NotStored(f"no artifact {sha256} is stored here")
        manifest = await self._blobs.manifest(sha256)
        if size_bytes not in (None, manifest.size):
            raise BlobError(f"artifact {sha256}: expected its size, {manifest.size} bytes, got {size_bytes}")
        return manifest

    async def chunk(self, caller: str, ask: ArtifactRefRequest) -> bytes:
        """The bytes of one chunk. Raises NotStored, also for who may have no artifact that it is a part of."""
        for artifact in [ask.artifact] if ask.artifact else self._unnamed(caller, ask.sha256):
            if await self._may(caller, artifact, ask.as_operator) and await self._has(artifact, ask.sha256):
                return await self._blobs.chunk(ask.sha256)
        raise NotStored(f"chunk {ask.sha256} is not stored here as a part of {ask.artifact or ask.sha256}")

    def _unnamed(self, caller: str, digest: str) -> list[str]:
        """Where a chunk may belong whose artifact is not named, as by nodes of older versions."""
        return [digest, *self._events.world.needed_by(caller)]

    async def _has(self, sha256: str, digest: str) -> bool:
        return digest == sha256 or await self._blobs.has_part(sha256, digest)

    async def _may(self, caller: str, sha256: str, as_operator: bool) -> bool:
        if (as_operator and caller in self._operators) or sha256 in self._events.world.needed_by(caller):
            return True
        return await self._owns(caller, sha256) or sha256 in self._events.world.needed_by(caller)

    async def _owns(self, caller: str, sha256: str) -> bool:
        """Whether a caller sent these bytes, or a job of his names them."""
        if self.is_named(caller, sha256) or await self._blobs.sent(sha256, caller):
            return True
        await self._events.catch_up()  # another central may have given the lease, or taken the job, a moment ago
        return self.is_named(caller, sha256)

    def is_named(self, caller: str, sha256: str) -> bool:
        """Whether a job of this caller names an artifact."""
        return (sha256, caller) in self._events.world.named
