"""What a node tells of its runs while they run."""

from cyxcore.spec import EpochMetrics
from cyxnet.codec import MSGPACK, decode
from cyxnet.messages import Progress
from cyxnode.telemetry import EPOCHS, Telemetry

RUN = ("job-1", 1)


class Said:
    def __init__(self):
        self.epochs = []

    async def publish(self, subject, payload):
        self.epochs.append(decode(Progress, payload, MSGPACK).epoch.epoch)


async def test_a_run_of_very_short_epochs_floods_no_central_and_tells_its_last():
    said, now_s = Said(), 0.0
    telemetry = Telemetry(said, "node-a", "0" * 32, lambda: now_s)
    for epoch in range(1, 10_001):
        now_s = epoch / 5_000
        metrics = EpochMetrics(
            epoch=epoch, epochs=10_000, step=epoch, epoch_loss=0.5, epoch_time_ms=0.2, samples_per_s=1.0
        )
        await telemetry.epoch(RUN, metrics)
    assert said.epochs[:100] == list(range(1, 101))
    assert len(said.epochs) <= EPOCHS.burst + 2 * EPOCHS.per_s + 2
    assert said.epochs[-1] == 10_000
