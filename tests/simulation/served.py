"""What must hold of a job that serves: a model of its time, its tries and its pay, made of its events alone.

A method says what does not hold, or None. Times are those that the log gives its events (milliseconds).
"""

from msgspec import Struct

from cyxnet import messages as m

STEADY_MS = 60_000  # who was ready for so long has worked, however it ended
MAX_PAYEES, MAX_LEASES = 4, 100
NOT_ITS_FAULT = ("node_lost", "run_missing", "node_stopped", "paused")
NO_TRY = ("refused", "node_stopped", "paused")


class Turn(Struct):
    """One attempt. ready_ms, over_ms: when its replica was, and when nobody held its lease any more."""

    node_id: str
    wallet: str
    ready_ms: int | None = None
    over_ms: int | None = None

    def served_ms(self, until_ms: int) -> int:
        if self.ready_ms is None:
            return 0
        return max(0, (until_ms if self.over_ms is None else self.over_ms) - self.ready_ms)


class Served(Struct):
    """ends: why no other attempt may follow, and the job be settled."""

    bought_ms: int
    price_base_units: int
    max_attempts: int
    turns: list[Turn]
    tries: int = 0
    broken: list[tuple[str, str]] = []  # nodes that could not open it, and how
    ends: str = ""

    def served_ms(self, until_ms: int) -> int:
        return sum(turn.served_ms(until_ms) for turn in self.turns)

    def left_ms(self, now_ms: int) -> int:
        """Until its time is used, of one that is ready, by a clock that may be behind the one that said so."""
        before_ms = sum(turn.served_ms(now_ms) for turn in self.turns[:-1])
        return self.bought_ms - before_ms - (now_ms - (self.turns[-1].ready_ms or 0))

    @property
    def is_ready(self) -> bool:
        return bool(self.turns) and self.turns[-1].ready_ms is not None and self.turns[-1].over_ms is None

    def leased(self, event: m.Leased) -> str | None:
        self.turns.append(Turn(event.node_id, event.wallet))
        return f"it is leased again, and ends: {self.ends}" if self.ends else None

    def started(self, at_ms: int) -> str | None:
        if self.is_ready:
            return "it starts twice in one attempt"
        self.turns[-1].ready_ms = at_ms
        return None

    def over(self, at_ms: int) -> None:
        self.turns[-1].over_ms = at_ms

    def lost(self, event: m.LeaseLost, at_ms: int) -> None:
        """After over(): whether this was a try, and whether there is another."""
        turn = self.turns[-1]
        if turn.ready_ms is not None and (event.code in NOT_ITS_FAULT or turn.served_ms(at_ms) >= STEADY_MS):
            self.tries = 0
        elif event.code not in NO_TRY:
            self.tries += 1
        elsewhere = any(code == event.code and node_id != turn.node_id for node_id, code in self.broken)
        if event.deterministic:
            self.broken = [*self.broken, (turn.node_id, event.code)]
        if self.served_ms(at_ms) >= self.bought_ms:
            self.ends = "its time is used"
        elif event.deterministic and (event.sole or elsewhere):
            self.ends = "it is at fault"
        elif self.tries >= self.max_attempts or len(self.turns) >= MAX_LEASES:
            self.ends = "it was tried often enough"

    def time_used(self, at_ms: int) -> str | None:
        if not self.is_ready:
            return "its time is used, and it is not ready"
        served_ms = self.served_ms(at_ms)
        self.ends = "its time is used"
        return f"it ends after {served_ms} of {self.bought_ms} ms" if served_ms < self.bought_ms else None

    def due(self) -> dict[str, int]:
        """What each wallet has earned: nothing before it was ready, nothing after its end, nothing beyond the end."""
        left_ms, share_ms = self.bought_ms, dict[str, int]()
        for turn in self.turns:
            paid_ms = min(left_ms, turn.served_ms(0))
            share_ms[turn.wallet] = share_ms.get(turn.wallet, 0) + paid_ms
            left_ms -= paid_ms
        earned = {wallet: self.price_base_units * ms // self.bought_ms for wallet, ms in share_ms.items()}
        return {wallet: base_units for wallet, base_units in earned.items() if base_units}

    def settled(self, event: m.Settled, terms: m.EscrowTerms, moved: dict[str, int]) -> str | None:
        """moved: what each wallet gained on the chain."""
        due, paid = self.due(), {payee.wallet: payee.pay_base_units for payee in event.payees}
        if len(due) > MAX_PAYEES:  # who served longest
            due = {wallet: due[wallet] for wallet in sorted(due, key=lambda each: (-due[each], each))[:MAX_PAYEES]}
            due |= {wallet: 0 for wallet in paid.keys() - due.keys()}  # equal pay may be of unequal times
            if sorted(paid.values()) == sorted(base_units for base_units in due.values() if base_units):
                due = paid
        if paid != due:
            return f"its nodes are paid {paid}, their time earned {due}"
        fees = {wallet: base_units * terms.fee_basis_points // 10_000 for wallet, base_units in paid.items()}
        gained = {wallet: paid[wallet] - fees[wallet] for wallet in paid}
        gained |= {terms.platform: sum(fees.values()), terms.client: terms.amount_base_units - sum(paid.values())}
        gained = {wallet: base_units for wallet, base_units in gained.items() if base_units}
        return f"the chain moved {moved}, and not {gained}" if moved != gained else None
