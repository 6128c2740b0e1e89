"""What a person reads: amounts, sizes, ages, and one sentence for each thing that happens to a job. Pure text."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from cyxcore.wording import human_bytes, human_duration, percent
from cyxnet.amounts import format_cyx
from cyxnet.messages import JobView, ReplicaView, Update

LOSSES_KEPT = 2_000
Fields = dict[str, Any]


# ---------------------------------------------------------------------------------------------------
# Values


def human_age(at_ms: int, now_ms: int | None = None) -> str:
    """How long ago a Unix time in ms was: "3 min 2 s ago"."""
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    return f"{human_duration(max(0, now_ms - at_ms) / 1000)} ago"


def cyx(base_units: int) -> str:
    return f"{format_cyx(base_units)} CYX"


def node_names(views: Iterable[JobView | ReplicaView]) -> dict[str | None, str]:
    """What to call the nodes of a list, by their ids: the name; the id where another one of the list has that name."""
    names = {view.node_id: view.node_name or view.node_id for view in views if view.node_id}
    shared = Counter(names.values())
    return {node_id: name if shared[name] == 1 else node_id for node_id, name in names.items()}


# ---------------------------------------------------------------------------------------------------
# What happened, in words: (label, sentence) for an update, from its kind and data


def _leased(data: Fields) -> str:
    explanation = data.get("explanation") or {}
    candidates = explanation.get("free_nodes") or len(explanation.get("candidates") or []) or 1
    terms = ", ".join(
        f"{name} {term['value']:.2f} × {term['weight']:g}" for name, term in (explanation.get("terms") or {}).items()
    )
    why = f", score {explanation['score']:.3f} ({terms})" if "score" in explanation else ""
    return f"{data['node_id']} takes attempt {data['attempt']}, best of {candidates}{why}"


def _epoch(data: Fields) -> str:
    return "  ".join([*_epoch_parts(data), *validation(data), _speed(data)])


def _speed(data: Fields) -> str:
    return f"{data['samples_per_s']:,.0f} samples/s"


def _epoch_parts(data: Fields) -> list[str]:
    parts = [f"{data['epoch']:>{len(str(data['epochs']))}}/{data['epochs']}", f"loss {data['epoch_loss']:.4f}"]
    if data.get("epoch_accuracy") is not None:
        parts.append(f"accuracy {percent(data['epoch_accuracy'])}")
    return parts


def validation(data: Fields) -> list[str]:
    """The validation metrics that are there, each with its name."""
    shown = []
    if data.get("validation_loss") is not None:
        shown.append(f"validation loss {data['validation_loss']:.4f}")
    if data.get("validation_accuracy") is not None:
        shown.append(f"validation accuracy {percent(data['validation_accuracy'])}")
    if data.get("validation_r2") is not None:
        shown.append(f"validation R² {data['validation_r2']:.4f}")
    shown += [f"{name.replace('_', ' ')} {score:.4f}" for name, score in (data.get("scores") or {}).items()]
    return shown


def _span(segment: Fields) -> str:
    start, end_step = segment.get("start"), segment.get("end_step", 0)
    end = f"step {end_step:,}" if end_step else "the model"
    return f"the segment from step {start['step'] if start else 0:,} to {end}"


def _completed(data: Fields) -> str:
    summary = data["summary"]
    facts = [
        f"{summary['steps']:,} steps in {human_duration(summary['total_time_ms'] / 1000)}",
        f"epoch {summary['delivered_epoch']} delivered",
        *validation(summary),
    ]
    checked = f"; before it is paid, {_span(data['segment'])} is trained again" if data.get("segment") else ""
    return f"{', '.join(facts)}; signed by {data['node_id']}{checked}"


def _settled(data: Fields) -> str:
    node, platform, client = (data[f"{who}_base_units"] for who in ("node", "platform", "client"))
    back = f", {cyx(client)} back to the client" if client else ""
    payees = data.get("payees") or []
    nodes = f"{len(payees)} nodes, by their steps" if len(payees) > 1 else "the node"
    return f"{cyx(node)} to {nodes}, {cyx(platform)} to the platform{back}; {data['signature']}"


def _refunded(data: Fields) -> str:
    back = cyx(data["client_base_units"])
    return (
        f"the escrow was refunded after its deadline: {back} back to the client, nobody was paid; {data['signature']}"
    )


def _submitted(data: Fields) -> str:
    terms = data["terms"]
    return f"{data['job']['name']} for {cyx(terms['amount_base_units'])}, escrow {terms['escrow']}"


def _checkpointed(data: Fields) -> str:
    stored = data["checkpoint"]
    return f"checkpoint of step {stored['step']:,} of {stored['steps']:,}, {human_bytes(stored['state']['size'])}"


def _lost(data: Fields) -> str:
    if data["code"] in ("paused", "node_stopped"):
        return f"attempt {data['attempt']} stopped as asked: {data['reason']}"
    again = "it is tried again while attempts are left"
    if data.get("deterministic"):
        again = "the same would happen elsewhere" if data.get("sole") else "another node has to confirm it"
    return f"attempt {data['attempt']} ended without a model ({data['code']}): {data['reason']}; {again}"


def _rejected(data: Fields) -> str:
    found = sorted({finding["node_id"] for finding in data["findings"]})
    why = f"{' and '.join(found)} found something else, twice"
    if not found:
        why = f"no training goes on from its start ({data['impossible']})"
    return f"{_span(data['segment'])} of attempt {data['attempt']}, by {data['node_id']}: {why}; nothing of it is paid"


def _dependencies_met(data: Fields) -> str:
    start = f"; it begins with the model {data['weights'][:12]}…" if data.get("weights") else ""
    return f"the jobs that it comes after are done{start}"


TELL: dict[str, tuple[str, Callable[[Fields], str]]] = {
    "Submitted": ("submitted", _submitted),
    "TransactionSigned": ("signed", lambda d: f"{d['purpose']} transaction {d['signed']['signature'][:8]}…"),
    "Funded": ("funded", lambda d: f"the amount is in escrow; {d['signature']}"),
    "FundFailed": ("not paid", lambda d: f"the deposit failed: {d['reason']}; nothing was taken"),
    "Leased": ("node", _leased),
    "Started": ("training", lambda d: f"attempt {d['attempt']} made its first step"),
    "Checkpointed": ("stored", _checkpointed),
    "LeaseLost": ("lost", _lost),
    "PauseRequested": ("pause", lambda d: "no step is made until it is resumed"),
    "ResumeRequested": ("resume", lambda d: "it waits for a node again"),
    "PriorityChanged": ("priority", lambda d: f"its priority is {d['priority']} from now on"),
    "Completed": ("trained", _completed),
    "CheckLeased": ("check", lambda d: f"{d['node_id']} trains the segment again"),
    "CheckLost": ("check", lambda d: f"nothing was found ({d['code']}): {d['reason']}; it is tried again"),
    "Checked": ("checked", lambda d: f"{d['finding']['node_id']} found the same bytes: it is paid"),
    "CheckDiffers": (
        "check",
        lambda d: f"{d['finding']['node_id']} found something else than was signed; another run decides",
    ),
    "Rejected": ("rejected", _rejected),
    "CheckGivenUp": ("unchecked", lambda d: f"it is paid unchecked: {d['reason']}"),
    "DependenciesMet": ("goes on", _dependencies_met),
    "DependencyFailed": ("cancel", lambda d: d["reason"]),
    "CancelRequested": ("cancel", lambda d: d["reason"]),
    "DeadlineNear": ("deadline", lambda d: "the escrow could soon be refunded: the job ends, what is stored is paid"),
    "Settled": ("settled", _settled),
    "Refunded": ("refunded", _refunded),
    "epoch": ("epoch", _epoch),
}
QUIET_KINDS = frozenset({"batch", "hardware"})  # too many to print one by one


def tell(update: Update) -> tuple[str, str] | None:
    """(label, sentence) for an update; None for the many small ones. An unknown kind is shown as it came."""
    if update.kind in QUIET_KINDS:
        return None
    if update.kind not in TELL:
        return update.kind.lower(), ", ".join(f"{key} {value}" for key, value in update.data.items())
    label, sentence = TELL[update.kind]
    return label, sentence(update.data)


# ---------------------------------------------------------------------------------------------------
# Progress: a fold over updates


class Tally:
    """Where a job's training is, from the updates so far. A new attempt starts anew."""

    def __init__(self) -> None:
        self.reset(0)

    def reset(self, attempt: int) -> None:
        self.attempt = attempt
        self.batch: Fields = {}
        self.epochs: list[Fields] = []
        self.losses: list[float] = []
        self._step = 0
        self._first: tuple[int, float] | None = None  # (at_ms, fraction) of the first batch
        self._last_ms = 0

    def add(self, update: Update) -> None:
        data = update.data
        attempt = int(data.get("attempt") or self.attempt)
        if attempt < self.attempt:
            return
        if attempt > self.attempt:
            self.reset(attempt)
        if update.kind == "batch" and data["step"] > self._step:  # one that came late is history
            self.batch, self._step, self._last_ms = data, data["step"], update.at_ms
            self.losses = [*self.losses[-LOSSES_KEPT:], data["batch_loss"]]
            self._first = self._first or (update.at_ms, self.fraction)
        elif update.kind == "epoch" and all(data["epoch"] != seen["epoch"] for seen in self.epochs):
            self.epochs = sorted([*self.epochs, data], key=lambda epoch: epoch["epoch"])

    @property
    def course(self) -> list[float]:
        """The losses to draw: of the batches that were told, or of the epochs where those are more."""
        by_epoch = [float(epoch["epoch_loss"]) for epoch in self.epochs]
        return by_epoch if len(by_epoch) > len(self.losses) else self.losses

    @property
    def fraction(self) -> float:
        """How much of the training is done, 0..1."""
        done = float(self.epochs[-1]["epoch"]) if self.epochs else 0.0
        total = self.epochs[-1]["epochs"] if self.epochs else 1
        if self.batch:
            total = self.batch["epochs"]
            done = max(done, self.batch["epoch"] - 1 + self.batch["batch"] / self.batch["batches"])
        return min(1.0, done / total)

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at the speed so far; None before there is a speed."""
        if self._first is None or self.fraction <= self._first[1]:
            return None
        elapsed_s = (self._last_ms - self._first[0]) / 1000
        return elapsed_s * (1 - self.fraction) / (self.fraction - self._first[1])

    def headline(self) -> str:
        """The present moment in one line: epoch, batch, loss, accuracy, speed, time left."""
        now, last = self.batch, self.epochs[-1] if self.epochs else None
        if last and (not now or now["epoch"] <= last["epoch"]):
            return f"epoch {'  '.join([*_epoch_parts(last), _speed(last)])}"
        if not now:
            return "waiting for the first step"
        parts = [
            f"epoch {now['epoch']}/{now['epochs']}",
            f"batch {now['batch']}/{now['batches']}",
            f"loss {now['batch_loss']:.4f}",
        ]
        if now.get("batch_accuracy") is not None:
            parts.append(f"accuracy {percent(now['batch_accuracy'])}")
        parts.append(_speed(now))
        if self.remaining_s is not None:
            parts.append(f"{human_duration(self.remaining_s)} left")
        return "  ".join(parts)
