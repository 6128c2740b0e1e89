"""The Celery application of the benchmark: what its worker processes import. Settings come from the environment."""

import os
import time

from celery import Celery

from benchmarks.control.child import append

LINES = os.environ["CYX_BENCH_LINES"]
DURABLE = os.environ["CYX_BENCH_DURABLE"] == "1"

app = Celery("cyx_benchmark", broker=f"redis://127.0.0.1:{os.environ['CYX_BENCH_PORT']}/0")
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
if DURABLE:  # the best that Celery documents: acknowledge at the end, give back what a killed worker held
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        broker_transport_options={"visibility_timeout": 10},
    )


@app.task
def stamp(number: int, sent_s: float) -> None:
    """Note how long it took to get here, on the clock that all processes of a machine share."""
    append(LINES, f"{number} {time.monotonic() - sent_s!r}")


@app.task
def work(number: int, task_ms: int) -> None:
    """Some work with one effect at its end."""
    time.sleep(task_ms / 1000)
    append(LINES, str(number))
