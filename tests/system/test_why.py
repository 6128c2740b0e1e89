"""A node's operator asks on its machine why it gets the jobs that it gets."""

import json

from cyxnet import jobfile
from cyxnode.home import open_home
from tests.system.conftest import EXAMPLES, until_node_is
from tests.system.test_drain import cyxnode


async def test_a_node_is_told_how_it_stands_while_it_works_drains_and_is_banned(client, network):
    [before] = await client.nodes()
    await cyxnode(network, "--drain")
    await until_node_is(client, "drained")
    job = jobfile.load(EXAMPLES / "digits.toml")
    waiting = await client.submit(job)
    while (await client.job(waiting.job_id)).status != "queued":
        pass
    code, said = await cyxnode(network, "why", "--json")
    assert code == 0, said
    told = json.loads(said)
    assert (told["node"]["node_id"], told["node"]["state"], told["jobs_waiting"]) == (before.node_id, "drained", 1)
    [prospect] = told["waiting"]
    assert prospect["job_id"] == waiting.job_id and prospect["refused"].startswith("draining")
    code, said = await cyxnode(network, "why")
    assert code == 0 and "its operator drains it" in " ".join(said.split()), said
    assert waiting.job_id in said and all(len(line) <= 80 for line in said.splitlines())

    await cyxnode(network, "--undrain")
    assert (await client.wait(waiting.job_id)).attempt == 1  # asking made no second session of the node
    assert (await client.nodes())[0].online

    stranger = open_home(network.folder, "stranger")
    try:
        code, said = await cyxnode(network, "why", "--name", "stranger")
        assert (code, said.count("\n")) == (1, 1) and f"does not know {stranger.node_id}" in said
    finally:
        stranger.close()


async def test_a_banned_node_hears_for_what_and_until_when(client, network):
    [node] = await client.nodes()
    await client.ban(node.node_id, "it was rude")
    code, said = await cyxnode(network, "why")
    words = " ".join(said.split())
    assert code == 0 and "is banned until" in words and "it was rude" in words, said
