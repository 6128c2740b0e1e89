"""Artifacts travel in chunks, to central and back."""

from typing import Annotated

from msgspec import Meta, Struct

from cyxcore.spec import Digest
from cyxnet.messages.fields import U63, Request


class ArtifactManifest(Request, kw_only=True, frozen=True):
    """An artifact as its chunks, in order. Every chunk but the last has the network's chunk size."""

    sha256: Digest
    size: U63
    chunks: Annotated[list[Digest], Meta(min_length=1, max_length=100_000)]


class ArtifactStatReply(Struct, kw_only=True):
    """complete: the artifact is stored whole. missing: chunks that must still be sent."""

    complete: bool
    missing: list[str]


class ArtifactRefRequest(Request, kw_only=True, frozen=True):
    """An artifact, or a chunk of one. Who may not have it is told that it is not there.

    artifact: of a chunk, the artifact that it is a part of; None: the chunk is all of it. as_operator: an operator may
    have everything.
    """

    sha256: Digest
    artifact: Digest | None = None
    as_operator: bool = False


class ChunkReply(Struct, kw_only=True):
    sha256: str
    size: int
