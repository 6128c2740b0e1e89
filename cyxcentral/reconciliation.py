"""On its start and every few minutes central compares log, ledger and chain, and freezes payouts when they differ."""

import asyncio
import logging

from cyxcentral import payouts
from cyxcentral.audit import Audit
from cyxcentral.eventlog import EventLog
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects

log = logging.getLogger(__name__)
EVERY_S = 300.0
AGAIN_S = 10.0  # after a comparison that could not be made


async def keep(events: EventLog, audit: Audit) -> None:
    """For ever. A comparison that cannot be made (the chain does not answer) is no difference."""
    while True:
        pause_s = EVERY_S
        try:
            await reconcile(events, audit)
        except CyxError as error:
            log.warning("log, ledger and chain were not compared: %s; will try again in %g s", error, AGAIN_S)
            pause_s = AGAIN_S
        except Exception:  # whatever it is, nobody would start this loop again
            log.exception("the comparison of log, ledger and chain failed; will try again in %g s", AGAIN_S)
            pause_s = AGAIN_S
        await asyncio.sleep(pause_s)


async def reconcile(events: EventLog, audit: Audit) -> None:
    """Compare once, and freeze payouts where something differs that no operator has accepted."""
    found = await _differences(events, audit)
    if payouts.freeze_due(events.world.payouts, found) is None:
        return
    await events.catch_up()  # what this central has not read yet is no difference
    again = set(await _differences(events, audit))
    found = [each for each in found if each in again]
    event = await events.record(subjects.PAYOUTS_EVENT, lambda: payouts.freeze_due(events.world.payouts, found))
    if event is not None:
        log.critical(
            "payouts are frozen: %s. Look at: cyx ledger verify; then: cyx payouts --release REASON", event.reason
        )


async def _differences(events: EventLog, audit: Audit) -> list[str]:
    checks = await audit.compare(events.machine.wall_ms())
    return [f"{check.name}: {each}" for check in checks for each in check.differences]


async def steer(events: EventLog, event: m.PayoutsEvent) -> m.PayoutsReply:
    """What an operator wants, if it is not so already."""

    def decide() -> m.PayoutsEvent | None:
        return None if payouts.illegal(events.world.payouts, event) else event

    if await events.record(subjects.PAYOUTS_EVENT, decide) is None:
        await events.catch_up()
        await events.record(subjects.PAYOUTS_EVENT, decide)
    now = events.world.payouts
    return m.PayoutsReply(
        frozen=now.why, since_ms=now.since_ms, differences=now.frozen.differences if now.frozen else []
    )
