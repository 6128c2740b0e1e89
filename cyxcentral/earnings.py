"""Who is paid what for a job, and what the ledger writes down of it. Pure."""

from cyxcentral import money
from cyxcentral.jobs import Job, bought_ms, ready_ms, usable, worth_base_units
from cyxnet import messages as m

MAX_PAYEES = 4  # as many recipients fit into one settlement transaction
MOVES_MONEY = frozenset({m.Funded, m.Settled, m.Refunded})  # of what else `entries` knows nothing to write down


def earned(job: Job) -> tuple[m.Payee, ...]:
    """Who is paid what: each wallet for the steps between its attempts' starts and their newest checkpoints.

    Rounded down to base units; what remains goes back to the client. When the job is completed, whoever completed it
    made all the steps that no paid checkpoint holds, and nothing remains but what is above the quoted price.
    """
    if job.job.serve:
        return _earned_by_time(job)
    amount = worth_base_units(job)
    last = {attempt.wallet: attempt.number for attempt in job.attempts if not attempt.rejected}
    winner = job.attempts[-1].wallet if job.completed else None
    if winner and len(last) == 1:  # as most jobs are: nobody to share with
        return (m.Payee(wallet=winner, pay_base_units=amount, attempt=job.attempt),)
    newest = job.checkpoint
    pay: dict[str, int] = {}
    for attempt, (stored, _) in zip(job.attempts, usable(job), strict=True) if newest else ():
        if stored and newest:
            steps = stored.step - attempt.first_step
            pay[attempt.wallet] = pay.get(attempt.wallet, 0) + amount * steps // newest.steps
    most = sorted((wallet for wallet in pay if wallet != winner), key=lambda wallet: (-pay[wallet], wallet))
    paid = {wallet: pay[wallet] for wallet in most[: MAX_PAYEES - 1 if winner else MAX_PAYEES]}
    if winner:
        paid[winner] = amount - sum(paid.values())
    return tuple(
        m.Payee(wallet=wallet, pay_base_units=base_units, attempt=last[wallet])
        for wallet, base_units in paid.items()
        if base_units
    )


def _earned_by_time(job: Job) -> tuple[m.Payee, ...]:
    """Who is paid what for serving: each wallet the share of the time that was bought in which it was ready.

    Attempts are counted in their order until the time is used up: nothing beyond it is paid. Rounded down to base
    units; what remains goes back to the client.
    """
    amount, bought, left = worth_base_units(job), bought_ms(job), bought_ms(job)
    served: dict[str, int] = {}
    last: dict[str, int] = {}
    for attempt in job.attempts:
        counted = min(ready_ms(attempt, 0), left)
        left -= counted
        if counted:
            served[attempt.wallet] = served.get(attempt.wallet, 0) + counted
            last[attempt.wallet] = attempt.number
    most = sorted(served, key=lambda wallet: (-served[wallet], wallet))[:MAX_PAYEES]
    paid = {wallet: amount * served[wallet] // bought for wallet in most}
    return tuple(
        m.Payee(wallet=wallet, pay_base_units=base_units, attempt=last[wallet])
        for wallet, base_units in paid.items()
        if base_units
    )


def entries(job: Job, event: m.JobEvent) -> list[money.Entry]:
    """The ledger entries of `event`; `job` is the state after it."""
    match event:
        case m.Funded():
            return money.deposit(job.terms)
        case m.Settled():
            payees = event.payees or [
                m.Payee(wallet=payee.wallet, pay_base_units=event.node_base_units + event.platform_base_units)
                for payee in job.payees[-1:]
            ]
            return money.settlement(job.terms, payees, event)
        case m.Refunded() if job.funded:  # else the ledger never saw the deposit either
            return money.refund(job.terms)
    return []


def movements(job: Job) -> list[money.Entry]:
    """All ledger entries of a job so far, by its state alone: what `entries` said, event by event."""
    if not job.funded:
        return []
    found, shares = money.deposit(job.terms), job.shares
    if shares is not None:
        paid = shares.node_base_units + shares.platform_base_units
        payees = list(job.payees)
        if payees and job.pay_base_units != paid:  # an event from before nodes were paid by steps
            payees = [m.Payee(wallet=payees[-1].wallet, pay_base_units=paid)]
        settled = m.Settled(
            signature=job.settle_signature or "",
            node_base_units=shares.node_base_units,
            platform_base_units=shares.platform_base_units,
            client_base_units=shares.client_base_units,
        )
        found += money.settlement(job.terms, payees, settled)
    return found
