"""What the tests of the client ask for and look at."""

import asyncio
import contextlib
from pathlib import Path

from cyxcore.spec import ModelSpec
from cyxnet import artifacts
from cyxnet import messages as m
from cyxnet.bus import ApiError
from cyxnet.client import AsyncClient

JOB = "digits-0123456789"
CYX = 10**9


def request_for(data_path: Path, amount_base_units: int = 2 * CYX) -> m.JobRequest:
    found = artifacts.describe(data_path)
    return m.JobRequest(
        name="Digits: a test!",
        model=ModelSpec(input=[1], layers=[{"kind": "Linear", "out_features": 2}]),
        dataset=m.ArtifactRef(sha256=found.sha256, size=found.size),
        amount_base_units=amount_base_units,
    )


async def collect(client: AsyncClient, job_id: str = JOB) -> list[m.Update]:
    async with asyncio.timeout(60), contextlib.aclosing(client.watch(job_id)) as updates:
        return [update async for update in updates]


def places(updates: list[m.Update]) -> list[tuple[str, int]]:
    return [(update.source, update.seq) for update in updates]


def busy(ask: m.SubmitRequest) -> None:
    raise ApiError("busy", "too much at once", 503)
