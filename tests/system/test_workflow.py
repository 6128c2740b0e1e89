"""Workflows on a whole network: the command, the money, the weights that go from job to job, and centrals that die."""

import asyncio
import json
import os
import signal
import sys

import numpy as np

import cyxcore
from cyxnet import workflow as workflows
from cyxnet.client import AsyncClient
from tests.system.conftest import EXAMPLES, assert_money_is_conserved, until
from tests.system.test_kills import process_of

FLOW = f"""
name = "digits"
[jobs.rates]
file = "{EXAMPLES / "digits.toml"}"
matrix = {{ "training.optimizer.learning_rate" = [0.01, 0.001] }}
set = {{ "training.epochs" = 2, amount = "1" }}
[jobs.more]
file = "{EXAMPLES / "digits.toml"}"
set = {{ "training.epochs" = 1, "training.optimizer.learning_rate" = 1e-9, amount = "1" }}
weights = "rates.validation_accuracy"
after = ["rates.validation_accuracy >= 0.1"]
[jobs.never]
file = "{EXAMPLES / "digits.toml"}"
after = ["more.final_loss <= -1"]
[jobs.nor-this]
file = "{EXAMPLES / "digits.toml"}"
after = ["never"]
"""


LATE = [("late", "never"), ("later", "late")]  # jobs that come too late


async def cyx(network, *arguments):
    command = [sys.executable, "-m", "cyxnet", "--dir", str(network.folder), "--json", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode, [json.loads(line) for line in said.decode().splitlines()]


async def test_a_workflow_runs_in_its_order_each_job_with_what_it_was_to_have(client, network, tmp_path):
    file, models = tmp_path / "flow.toml", tmp_path / "models"
    file.write_text(FLOW)
    models.mkdir()
    code, said = await cyx(network, "run", str(file), "-o", str(models))
    ends = {each["step"]: each["job"] for each in said[-1]}
    assert code == 1  # not all are completed
    assert {step: job["status"] for step, job in ends.items()} == {
        "rates-1": "completed",
        "rates-2": "completed",
        "more": "completed",
        "never": "cancelled",
        "nor-this": "cancelled",
    }
    assert "final_loss of" in ends["never"]["error"] and "is to be at most -1" in ends["never"]["error"]
    assert ends["never"]["client_base_units"] == ends["never"]["amount_base_units"]
    assert sorted(path.name for path in models.iterdir()) == [
        "more.safetensors",
        "rates-1.safetensors",
        "rates-2.safetensors",
    ]
    before, after, other = (
        cyxcore.load_model(models / f"{name}.safetensors").weights for name in ("rates-1", "more", "rates-2")
    )
    for name, array in before.items():  # next to nothing was learnt, so what it began with shows
        np.testing.assert_allclose(after[name], array, atol=1e-5)
    assert any(not np.allclose(other[name], array, atol=1e-3) for name, array in before.items())
    run = said[0]["data"]["run"]
    code, said = await cyx(network, "run", str(file), "--again", run, "--no-wait")
    assert (code, said[-1]["data"]["jobs"]) == (0, {step: job["job_id"] for step, job in ends.items()})
    late = [f'[jobs.{name}]\nfile = "{EXAMPLES / "digits.toml"}"\nafter = ["{other}"]' for name, other in LATE]
    file.write_text("\n".join([FLOW, *late]))
    code, said = await cyx(network, "run", str(file), "--again", run)
    whys = {each["step"]: each["not_submitted"] for each in said[-1] if "not_submitted" in each}
    assert (code, list(whys)) == (1, ["late", "later"])
    assert "it would never begin: digits-never-" in whys["late"] and "is not submitted" in whys["later"]
    file.write_text(FLOW.replace('amount = "1"', 'amount = "2"'))
    code, said = await cyx(network, "run", str(file), "--again", run, "--no-wait")
    assert code == 2 and "was submitted with other settings" in said[-1]["data"]["message"]
    await assert_money_is_conserved(client, network)


async def test_who_stops_following_stops_nothing_and_hears_how_to_go_on(client, network, standing, tmp_path):
    file = tmp_path / "flow.toml"
    file.write_text(FLOW)
    standing.after(epoch=1)
    command = [sys.executable, "-m", "cyxnet", "--dir", str(network.folder), "--json", "run", str(file)]
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, **pipes)
    while json.loads(await process.stdout.readline())["kind"] != "Leased":
        pass
    process.send_signal(signal.SIGINT)
    said, complaint = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, complaint.decode()) == (130, "cyx: stopped\n")
    assert "--again" in said.decode()
    standing.go_on()
    [first] = (await client.jobs(name="digits/rates-1")).jobs
    assert (await client.wait(first.job_id)).status == "completed"


async def test_a_run_is_stopped_with_one_command(client, network, standing, tmp_path):
    file = tmp_path / "flow.toml"
    file.write_text(FLOW)
    standing.after(epoch=1)
    code, said = await cyx(network, "run", str(file), "--no-wait")
    run, ids = said[-1]["data"]["run"], said[-1]["data"]["jobs"]
    await until(client, ids["rates-1"], "Started")
    code, said = await cyx(network, "cancel", "--run", run, "--reason", "another idea")
    assert (code, len(said)) == (0, len(ids))
    standing.go_on()
    ends = [await client.wait(job_id) for job_id in ids.values()]
    assert {(end.status, end.error) for end in ends} == {("cancelled", "another idea")}
    assert {view.job_id for view in (await client.jobs(run=run)).jobs} == set(ids.values())
    await assert_money_is_conserved(client, network)


async def test_a_workflow_goes_on_when_its_client_is_gone_and_central_is_killed(network, standing, tmp_path):
    file = tmp_path / "flow.toml"
    file.write_text(FLOW)
    standing.after(epoch=1)
    async with await AsyncClient.connect(network.folder) as client:
        await client.faucet(50_000_000_000)
        ids = await workflows.submit(client, workflows.load(file), "0123456789")
        await until(client, ids["rates-1"], "Started")
    async with await AsyncClient.connect(network.folder) as client:  # a central that is not there lets nobody in
        os.kill(process_of(network, "central"), signal.SIGKILL)
        standing.go_on()
        ends = {step: (await client.wait(job_id)).status for step, job_id in ids.items()}
        assert ends == dict.fromkeys(["rates-1", "rates-2", "more"], "completed") | dict.fromkeys(
            ["never", "nor-this"], "cancelled"
        )
        kinds = [update.kind async for update in client.watch(ids["more"])]
        assert kinds.index("DependenciesMet") < kinds.index("Leased")
        await assert_money_is_conserved(client, network)
