"""A node with two NVIDIA devices, which its training processes are told of and do not have."""

import asyncio
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from cyxnet import jobfile
from cyxnet.client import AsyncClient
from cyxnet.local import LocalNetwork
from tests.system.conftest import EXAMPLES, assert_money_is_conserved, make_nodes_by, until


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where runs say which device they see; nodes of networks made in the test are of that kind."""
    made = tmp_path / "gpus"
    made.mkdir()
    make_nodes_by(monkeypatch, "two_gpus.py", made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return made


async def test_two_jobs_run_at_once_on_a_device_each_and_a_third_waits(folder, tmp_path):
    job = jobfile.load(EXAMPLES / "digits.toml")
    job = replace(job, needs=replace(job.needs, device="cuda"))
    gates = [folder / "GPU-0", folder / "GPU-1"]
    for gate in gates:
        os.mkfifo(gate)
    async with LocalNetwork(tmp_path / "net", heartbeat_ms=500, lease_ms=4_000) as network:
        async with await AsyncClient.connect(network.folder) as client:
            await client.faucet(50_000_000_000)
            (node,) = await client.nodes()
            assert [gpu.name for gpu in node.hardware.gpus] == ["card 0", "card 1"]
            first, second = [(await client.submit(job)).job_id for _ in range(2)]
            await asyncio.gather(until(client, first, "epoch"), until(client, second, "epoch"))
            assert sorted((folder / "used").read_text().split()) == ["GPU-0", "GPU-1"]
            third = (await client.submit(job)).job_id
            await until(client, third, "Funded")  # a node that has room is given the job before that
            assert (await client.job(third)).status == "queued"
            for gate in gates:
                os.close(os.open(gate, os.O_WRONLY))
            for job_id in (first, second, third):
                async with asyncio.timeout(60):
                    async for _ in client.watch(job_id):
                        pass
                assert (await client.job(job_id)).status == "completed"
            used = (folder / "used").read_text().split()
            assert len(used) == 3 and used[2] in used[:2]
            await assert_money_is_conserved(client, network)
