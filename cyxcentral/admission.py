"""Who may come in, and as whom: decided from what a connection proves and what the log says of nodes. Pure.

| who connects with | is | and may come in unless |
|---|---|---|
| an nkey and nothing else | a client, or an operator where the network names it as one | it is a banned client |
| an nkey and a node's token | that node | it is banned, or is registered with another key |
| the same, and the token names a run | a replica on it | the node may not, or does not hold that lease |

The broker asks and obeys; it checks no signature itself.
"""

import base64
import binascii
import re
from collections.abc import Callable, Collection

from cryptography.exceptions import InvalidSignature
from msgspec import Struct

from cyxcentral import nodes
from cyxnet.config import CLIENT_ID
from cyxnet.credentials import USER, bound_node, caller_id, nkey_bytes, replica_id
from cyxnet.identity import ed25519_key
from cyxnet.subjects import Role


class Proof(Struct, frozen=True, kw_only=True):
    """What a connection shows. nonce: drawn by the broker for this connection; sig: over its letters, base 64."""

    nkey: str = ""
    sig: str = ""
    auth_token: str = ""
    nonce: str = ""
    host: str = ""  # the address it comes from, as its broker sees it


class Admitted(Struct, frozen=True, kw_only=True):
    """A connection that may come in, for `lasts_s`."""

    role: Role
    identity: str
    lasts_s: int
    deployment: str = ""  # of a replica: what it may answer for, and all it may do


class Refused(Struct, frozen=True, kw_only=True):
    reason: str


def decide(
    proof: Proof,
    node_of: Callable[[str], nodes.Node | None],
    operators: Collection[str],
    session_s: int,
    now_ms: int,
    banned_until_ms: Callable[[str], int] = lambda client_id: 0,
    serves: Callable[[str, str, int], str | None] = lambda node_id, job_id, attempt: None,
) -> Admitted | Refused:
    """Let the connection in as whoever it has proved to be. node_of: a node as the log knows it.

    serves: the deployment for which a node holds the lease of this attempt at this job, None when it does not.

    banned_until_ms: of a client, 0 for who is not banned now. Operators are whom network.json names, and nobody else.
    """
    if why_not := _unproved(proof):
        return Refused(reason=why_not)
    if not proof.auth_token:
        caller = caller_id(proof.nkey)
        if caller in operators:
            return Admitted(role="operator", identity=caller, lasts_s=session_s)
        if until_ms := banned_until_ms(caller):
            return Refused(reason=f"{caller} is banned until {until_ms} ms after 1970")
        return Admitted(role="client", identity=caller, lasts_s=session_s)
    try:
        said = bound_node(proof.auth_token, proof.nkey)
    except ValueError as error:
        return Refused(reason=str(error))
    known = node_of(said.node_id)
    if known is not None and known.public_key != said.public_key:
        return Refused(reason=f"{said.node_id} is registered with another key")
    if known is not None and (until_ms := nodes.at(known, now_ms).banned_until_ms):
        return Refused(reason=f"{said.node_id} is banned until {until_ms} ms after 1970")
    if not said.job_id:
        return Admitted(role="node", identity=said.node_id, lasts_s=session_s)
    deployment = serves(said.node_id, said.job_id, said.attempt)
    if deployment is None:
        return Refused(reason=f"{said.node_id} does not hold the lease of {said.job_id}, attempt {said.attempt}")
    identity = replica_id(said.node_id, said.job_id, said.attempt)
    return Admitted(role="node", identity=identity, lasts_s=session_s, deployment=deployment)


def roles(
    identity: str,
    node_of: Callable[[str], nodes.Node | None],
    operators: Collection[str],
    now_ms: int,
    banned_until_ms: Callable[[str], int] = lambda client_id: 0,
) -> frozenset[Role]:
    """What an identity may be now, however it shows who it is: nothing while it is banned."""
    if re.fullmatch(CLIENT_ID, identity):
        if identity in operators:
            return frozenset(("client", "operator"))
        return frozenset() if banned_until_ms(identity) else frozenset(("client",))
    known = node_of(identity)
    banned = known is not None and nodes.at(known, now_ms).banned_until_ms
    return frozenset() if banned else frozenset(("node",))


def _unproved(proof: Proof) -> str | None:
    """Why the connection has not shown that it holds the key it names; None when it has."""
    if not proof.nkey or not proof.nonce:
        return "no nkey was shown: connect with a key, not with a name and password"
    try:
        key = ed25519_key(nkey_bytes(USER, proof.nkey))
        key.verify(base64.b64decode(_padded(proof.sig), validate=True), proof.nonce.encode())
    except (ValueError, binascii.Error, InvalidSignature):
        return f"the nonce is not signed by {proof.nkey[:60]}"
    return None


def _padded(sig: str) -> str:
    """Clients write base 64 as they please: with - and _, without padding."""
    return sig.replace("-", "+").replace("_", "/") + "=" * (-len(sig) % 4)
