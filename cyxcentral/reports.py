"""Whether what a node said and signed may count: its key, its network, its time, its place, its length. Pure.

Which run it is of, and whether the node still holds that, is for the fence (cyxcentral/runreports.py).
"""

from cyxcore.spec import TrainingSummary
from cyxnet import messages as m
from cyxnet.codec import BadMessage
from cyxnet.identity import verify
from cyxnet.outcomes import ApiError

LONGEST_TEXT_CHARS = 200  # of what a node says of itself; everybody who lists the nodes or jobs is told it
LONGEST_AHEAD_MS = 86_400_000  # that anything is good for: no signature is worth something for ever


def refuse_false(said: m.NodeSigned, signed: bytes, public_key: str, dated: bool, network_id: str, now_ms: int) -> None:
    """Raises ApiError for a signature that is not of this key, or not for this network and time.

    signed: the canonical bytes of `said`. dated: whether the session has to name network, sequence and expiry: as soon
    as its registration did. A registration may leave the network out: a node may not have been told it.
    """
    if not verify(public_key, signed, said.signature):
        raise ApiError("bad_signature", f"the {type(said).__name__} is not signed by the node's key", 403)
    if not said.expires_ms:
        if dated:
            raise ApiError("undated", "the session signs with an expiry; this was signed without one", 403)
        return
    if said.network_id != network_id and (said.network_id or not isinstance(said, m.Register)):
        raise ApiError("wrong_network", f"it was signed for the network {said.network_id!r}, not {network_id!r}", 403)
    if not said.sequence:
        raise ApiError("bad_sequence", "expected a sequence from 1 on beside an expiry, got 0", 403)
    if now_ms > said.expires_ms:
        late_s = (now_ms - said.expires_ms) // 1000
        why = f"it was good until {late_s} s ago by central's clock: sign it again"
        raise ApiError("expired", why, 409, now_ms=now_ms)
    if said.expires_ms - now_ms > LONGEST_AHEAD_MS:
        hours = (said.expires_ms - now_ms) // 3_600_000
        why = f"it is good for {hours} more hours by central's clock, expected 24 at most: sign it by that clock"
        raise ApiError("good_too_long", why, 409, now_ms=now_ms)


def refuse_long_texts(said: m.Hardware | TrainingSummary) -> None:
    """Everybody's list would be too large for an answer. (In the types it would make old events unreadable.)"""
    for part in (said, *getattr(said, "gpus", ())):
        for name in part.__struct_fields__:
            text = getattr(part, name)
            if isinstance(text, str) and len(text) > LONGEST_TEXT_CHARS:
                raise BadMessage(f"{name}: expected at most {LONGEST_TEXT_CHARS} characters, got {len(text)}")
