"""A node that nobody knows, on a whole network: what it gets, what is said of that, and how it becomes known."""

import asyncio
import io
import subprocess
import sys

from msgspec.structs import replace

from cyxnet import jobfile
from cyxnet.cli.jobs import tell_quote
from cyxnet.cli.screen import PlainScreen
from cyxnet.client import AsyncClient
from cyxnet.local import LocalNetwork
from tests.node.serving.models import mlp
from tests.system.conftest import EXAMPLES, until

CYX = 10**9


async def deployed(folder, tmp_path, amount, replicas="1"):
    """What `cyx deploy` says of a model for so much; it is undeployed at once."""
    mlp().save(tmp_path / "small.cyxmodel")
    command = [sys.executable, "-m", "cyxnet", "--dir", str(folder)]
    options = ["--amount", amount, "--replicas", replicas, "--no-wait"]
    for more in (["deploy", str(tmp_path / "small.cyxmodel"), *options], ["undeploy", "small"]):
        ran = await asyncio.to_thread(subprocess.run, [*command, *more], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        if "deploy" in more:
            said = ran.stdout + ran.stderr
    return said


async def test_a_node_gets_small_jobs_until_three_clients_have_paid_for_its_work(tmp_path):
    sight, settings = io.StringIO(), {"unproven_limit_base_units": 3 * CYX}
    async with LocalNetwork(tmp_path / "net", heartbeat_ms=500, lease_ms=4_000, settings=settings) as network:
        small, url = jobfile.load(EXAMPLES / "digits.toml"), network.file.client_url
        small = replace(small, training=replace(small.training, epochs=1))
        async with await AsyncClient.connect(tmp_path / "first", url=url) as first:
            await first.faucet(10 * CYX)
            prepared = await first.prepare(replace(small, amount_base_units=4 * CYX))
            tell_quote(prepared, PlainScreen(sight))
            assert "jobs of up to 3 CYX, and this one may cost 4 CYX" in sight.getvalue()
            assert "3 CYX, and this one may cost 4 CYX" in await deployed(network.folder, tmp_path, "4")
            assert "1 of 2 replicas wait for another" in await deployed(network.folder, tmp_path, "1", "2")
            dear = await first.submit(replace(small, amount_base_units=4 * CYX))
            await until(first, dear.job_id, "Funded")
            assert "not proven yet (0 of 3 clients" in (await first.explain(dear.job_id)).waiting_for
            for number, name in enumerate(("first", "second", "third")):
                [node] = await first.nodes()
                assert (node.proofs, node.limit_base_units) == (number, 3 * CYX)
                async with await AsyncClient.connect(tmp_path / name, url=url) as client:
                    await client.faucet(10 * CYX)
                    done = await client.submit(small)
                    assert (await client.wait(done.job_id)).status == "completed"
            assert (await first.wait(dear.job_id)).status == "completed"
            [node] = await first.nodes()
            assert (node.proofs, node.limit_base_units) == (3, 0)
            assert (await first.prepare(small)).quote.unproven_limit_base_units == 0
