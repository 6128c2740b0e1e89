"""Whether the platform pays, as facts that happened: one word for all of its centrals. Pure.

Central freezes payouts when the log, the ledger and the chain differ; so may an operator. Frozen, jobs are taken and
trained as before, and nothing is signed or sent. Only an operator releases them, and takes the differences that were
found as they are: the same ones do not freeze payouts again.
"""

from msgspec import Struct
from msgspec.structs import replace

from cyxnet import messages as m


class Payouts(Struct, frozen=True, kw_only=True):
    """The fold of the events about payouts."""

    frozen: m.PayoutsFrozen | None = None
    since_ms: int = 0
    accepted: tuple[str, ...] = ()  # differences that an operator has looked at

    @property
    def why(self) -> str:
        """Why nothing is paid; empty when it is."""
        return self.frozen.reason if self.frozen else ""


def illegal(payouts: Payouts, event: m.PayoutsEvent) -> str | None:
    """Why `event` cannot happen now; None when it can."""
    if isinstance(event, m.PayoutsFrozen):
        return "payouts are frozen already" if payouts.frozen else None
    return None if payouts.frozen else "payouts are not frozen"


def evolve(payouts: Payouts, event: m.PayoutsEvent, at_ms: int) -> Payouts:
    if isinstance(event, m.PayoutsFrozen):
        return replace(payouts, frozen=event, since_ms=at_ms)
    assert payouts.frozen is not None
    accepted = dict.fromkeys((*payouts.accepted, *payouts.frozen.differences))
    return replace(payouts, frozen=None, since_ms=at_ms, accepted=tuple(accepted))


def freeze_due(payouts: Payouts, differences: list[str]) -> m.PayoutsFrozen | None:
    """The freeze that these differences ask for; None for those that an operator knows of."""
    new = [each for each in differences if each not in payouts.accepted]
    if not new or payouts.frozen:
        return None
    more = f", and {len(new) - 1} more" if len(new) > 1 else ""
    return m.PayoutsFrozen(reason=f"{new[0]}{more}", differences=new[:KEPT])


KEPT = 100  # differences in one event
