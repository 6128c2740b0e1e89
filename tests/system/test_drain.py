"""An operator looks after a node: it takes nothing new, finishes what it has, and works again when told."""

import asyncio
import sys

from cyxnet import jobfile
from tests.system.conftest import EXAMPLES, until, until_node_is


async def cyxnode(network, *arguments):
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "cyxnode", "--dir", str(network.folder), *arguments],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, error = await process.communicate()
    return process.returncode, (said + error).decode()


async def test_a_node_is_drained_and_taken_back(client, network, standing):
    job = jobfile.load(EXAMPLES / "digits.toml")
    standing.after(epoch=1)
    long = await client.submit(job)
    await until(client, long.job_id, "epoch")
    code, said = await cyxnode(network, "--drain")
    assert (code, "node-1 (process" in said) == (0, True), said
    await until_node_is(client, "draining")
    waiting = await client.submit(job)
    standing.go_on()
    assert ((await client.wait(long.job_id)).status, (await client.job(long.job_id)).attempt) == ("completed", 1)
    await until_node_is(client, "drained")
    assert "draining: it takes no new runs, as its operator wants" in (await client.explain(waiting.job_id)).waiting_for
    assert (await cyxnode(network, "--undrain", "--name", "node-1"))[0] == 0
    view = await client.wait(waiting.job_id)
    assert (view.status, view.attempt) == ("completed", 1)


async def test_who_drains_a_node_that_does_not_run_is_told_so_in_one_line(network):
    code, said = await cyxnode(network, "--drain", "--name", "nobody")
    assert (code, said) == (1, "cyxnode: error: no node named 'nobody' runs in " + f"{network.folder}\n")
