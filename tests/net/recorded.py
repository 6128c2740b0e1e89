"""A recorded job, and what a person reads of it."""

from typing import Any

from cyxnet.messages import Update
from tests.net.fake_api import NODE

JOB = "digits-0123456789"
SIGNATURE = "5" * 88
SUMMARY = {
    "total_time_ms": 1234.0,
    "steps": 90,
    "final_loss": 0.1,
    "best_epoch": 2,
    "delivered_epoch": 2,
    "validation_loss": 0.25,
    "validation_accuracy": 0.978,
    "train_rows": 1438,
    "validation_rows": 359,
    "parameters": 17226,
}


def updates() -> list[Update]:
    """A recorded job: paid, leased twice, trained for two epochs, settled."""
    term = {"value": 1.0, "weight": 0.5}
    explanation = {"score": 0.8734, "terms": {"device": term, "queue": term}, "candidates": [{}, {}]}
    lease = {"node_id": "node-1-aa", "wallet": NODE.wallet, "explanation": explanation}
    epoch = {"epochs": 2, "step": 45, "samples_per_s": 41_234.5, "epoch_time_ms": 34.9}
    first = epoch | {"epoch": 1, "epoch_loss": 0.9123, "epoch_accuracy": 0.781, "validation_loss": 0.512}
    second = epoch | {"epoch": 2, "epoch_loss": 0.1, "epoch_accuracy": 0.99, "validation_accuracy": 0.978}
    batch = {"epoch": 1, "epochs": 2, "batch": 9, "batches": 45, "step": 9, "batch_loss": 2.0, "samples_per_s": 4e4}
    happened: list[tuple[str, str, dict[str, Any]]] = [
        ("event", "Funded", {"signature": SIGNATURE}),
        ("event", "Leased", lease | {"attempt": 1}),
        ("event", "LeaseLost", {"attempt": 1, "code": "process_died", "reason": "SIGKILL", "deterministic": False}),
        ("event", "Leased", lease | {"attempt": 2}),
        ("event", "Started", {"attempt": 2}),
        ("telemetry", "batch", batch | {"attempt": 2}),
        ("telemetry", "epoch", first | {"attempt": 2}),
        ("telemetry", "hardware", {"cpu": {}}),
        ("telemetry", "batch", batch | {"attempt": 2, "epoch": 2, "batch": 18, "step": 63, "batch_loss": 0.5}),
        ("telemetry", "epoch", second | {"attempt": 2}),
        ("event", "Completed", {"attempt": 2, "node_id": "node-1-aa", "summary": SUMMARY}),
        (
            "event",
            "Settled",
            {
                "signature": SIGNATURE,
                "node_base_units": 2_250_000_000,
                "platform_base_units": 250_000_000,
                "client_base_units": 0,
            },
        ),
    ]
    return [
        Update(job_id=JOB, source=source, seq=seq, at_ms=1000 * seq, kind=kind, data=data)  # type: ignore[arg-type]
        for seq, (source, kind, data) in enumerate(happened, 1)
    ]


TRAIN_SCREEN = f"""\
funded    the amount is in escrow; {SIGNATURE}
node      node-1-aa takes attempt 1, best of 2, score 0.873 (device 1.00 × 0.5, queue 1.00 × 0.5)
lost      attempt 1 ended without a model (process_died): SIGKILL; it is tried again while attempts are left
node      node-1-aa takes attempt 2, best of 2, score 0.873 (device 1.00 × 0.5, queue 1.00 × 0.5)
training  attempt 2 made its first step
epoch     1/2  loss 0.9123  accuracy 78.1 %  validation loss 0.5120  41,234 samples/s
epoch     2/2  loss 0.1000  accuracy 99.0 %  validation accuracy 97.8 %  41,234 samples/s
trained   90 steps in 1.2 s, epoch 2 delivered, validation loss 0.2500, validation accuracy 97.8 %; signed by node-1-aa
settled   2.25 CYX to the node, 0.25 CYX to the platform; {SIGNATURE}
"""
