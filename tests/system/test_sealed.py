"""A job that is sealed to one node, on a whole network: what lies in the store is in plain text nowhere."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from cyxcore.errors import CyxError, SpecError
from cyxnet import envelope, jobfile
from cyxnet.client import AsyncClient
from cyxnet.identity import Identity
from tests.system.conftest import EXAMPLES, assert_money_is_conserved, until

DIGITS = EXAMPLES / "digits.toml"


def cyx(network, *arguments):
    command = [sys.executable, "-m", "cyxnet", "--dir", str(network.folder), "--json", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    return told.get("data", told)


@pytest.fixture
async def sealing_key(client, network):
    """What the node's operator is shown, as (node id, key)."""
    [node] = await client.nodes()
    told = await asyncio.to_thread(cyx, network, "id", "show", "--node", node.name)
    node_id, key = told["sealing_key"].split("=")
    assert node_id == node.node_id
    return node_id, key


def told_in_plain_text(network, text, *, nodes=False):
    """The files in which a text lies as it is; nodes: those of the nodes, of which one may read it, too.

    Files and folders come and go meanwhile: a node warms up its next process.
    """
    found = []
    for folder, folders, names in os.walk(network.folder):
        if not nodes and "nodes" in folders:
            folders.remove("nodes")
        for path in [Path(folder, name) for name in names]:
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and text in path.read_bytes():
                    found.append(path)
    return found


async def test_data_states_and_model_of_a_sealed_job_are_for_its_client_and_node(
    client, network, sealing_key, standing, tmp_path
):
    job = jobfile.load(DIGITS)
    sealed = jobfile.seal(job, client.keys, *sealing_key, tmp_path)
    standing.after(epoch=1)
    submitted = await client.submit(sealed)
    await until(client, submitted.job_id, "epoch")
    await client.pause(submitted.job_id)
    await until(client, submitted.job_id, "Checkpointed")
    await client.resume(submitted.job_id)
    view = await client.wait(submitted.job_id)
    assert (view.status, view.sealed) == ("completed", True), view.error
    assert view.checkpoint

    for what, ref in (("data", None), ("state", view.checkpoint.state), ("model", view.model)):
        path = tmp_path / f"stored-{what}"
        if ref is None:
            path = sealed.data_path
        else:
            await client.fetch(ref.sha256, path)
        assert envelope.is_sealed(path)
        with pytest.raises(envelope.SealError):
            envelope.unseal(path, tmp_path / "opened", envelope.as_client(Identity(b"c" * 32)), what)
    row = job.data_path.read_bytes().splitlines()[700]
    assert told_in_plain_text(network, row) == []
    await client.download(view.job_id, tmp_path / "sealed.cyxmodel")
    assert told_in_plain_text(network, row, nodes=True) == []  # what the node opened went with its process

    same = await client.wait((await client.submit(job)).job_id)  # in plain text: the very same model
    assert told_in_plain_text(network, row)
    await client.download(same.job_id, tmp_path / "plain.cyxmodel")
    assert (tmp_path / "sealed.cyxmodel").read_bytes() == (tmp_path / "plain.cyxmodel").read_bytes()
    with pytest.raises(SpecError, match="its model is sealed"):
        await client.deployments.source(view.job_id)
    await assert_money_is_conserved(client, network)


async def test_a_job_that_is_sealed_to_another_key_ends_and_costs_nothing(client, network, sealing_key, tmp_path):
    job = jobfile.load(DIGITS)
    node_id, _ = sealing_key
    sealed = jobfile.seal(job, client.keys, node_id, envelope.node_key(Identity(b"another".ljust(32))), tmp_path)
    view = await client.wait((await client.submit(sealed)).job_id)
    assert view.status == "failed" and "sealed to another key" in view.error
    assert (view.node_base_units, view.client_base_units) == (0, job.amount_base_units)


async def test_only_who_sealed_a_job_opens_its_model(client, network, sealing_key, tmp_path):
    """`client` is the operator of this network, who may fetch everything."""
    async with await AsyncClient.connect(tmp_path / "owner", url=network.file.client_url) as owner:
        await owner.faucet()
        job = jobfile.load(DIGITS)
        sealed = jobfile.seal(
            replace(job, training=replace(job.training, epochs=2)), owner.keys, *sealing_key, tmp_path
        )
        view = await owner.wait((await owner.submit(sealed)).job_id)
        assert view.status == "completed", view.error
        with pytest.raises(CyxError, match="cannot be opened by this client"):
            await client.download(view.job_id, tmp_path / "stolen.cyxmodel")
        assert not (tmp_path / "stolen.cyxmodel").exists()
        await owner.download(view.job_id, tmp_path / "model.cyxmodel")


async def test_the_command_seals_and_opens(network, client, sealing_key, tmp_path):
    node_id, key = sealing_key
    await asyncio.to_thread(cyx, network, "submit", str(DIGITS), "--seal", f"{node_id}={key}", "--wait")
    [view] = (await client.jobs()).jobs
    assert (view.status, view.sealed, view.node_id) == ("completed", True, node_id)
    out = tmp_path / "model.safetensors"
    await asyncio.to_thread(cyx, network, "get", view.job_id, "-o", str(out))
    assert out.stat().st_size > 1000
    assert list((network.folder / "packed").glob("*")) == []
