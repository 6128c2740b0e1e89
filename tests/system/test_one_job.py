"""The whole path on real processes: submit → lock → match → train → stream → deliver → pay."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import msgspec
import pytest
import safetensors.numpy

import cyxcore as cx
from cyxcore.errors import CyxError
from cyxcore.spec import TrainingSpec
from cyxnet import jobfile, subjects
from cyxnet import messages as m
from cyxnet.client import AsyncClient
from cyxnet.escrow import split
from cyxnet.local import LocalNetwork
from tests.system.conftest import EXAMPLES, assert_money_is_conserved, endless, until_node_is

AMOUNT = 2_500_000_000


@pytest.mark.parametrize(
    "example, metric, at_least",
    [
        ("digits.toml", "validation_accuracy", 0.97),
        ("digits_cnn.toml", "validation_accuracy", 0.97),
        ("digits_resnet.cyxgraph", "validation_accuracy", 0.96),
        ("diabetes.toml", "validation_r2", 0.4),
    ],
)
async def test_an_example_trains_is_paid_and_its_model_reproduces_its_metrics(
    client, network, tmp_path, example, metric, at_least
):
    job = jobfile.load(EXAMPLES / example)
    before = (await client.wallet()).token_base_units
    submitted = await client.submit(job)
    kinds = [update.kind async for update in client.watch(submitted.job_id)]
    view = await client.job(submitted.job_id)
    assert view.status == "completed", view.error
    assert getattr(view.summary, metric) >= at_least

    events = [kind for kind in kinds if kind[0].isupper()]
    assert events[0] == "Submitted"
    assert set(events[1:3]) == {"Leased", "Funded"}  # a node prepares while the deposit becomes final
    assert events[3:] == ["Started", "Completed", "TransactionSigned", "Settled"]
    assert kinds.count("epoch") == job.training.epochs
    assert "batch" in kinds and "hardware" in kinds

    assert (view.node_base_units, view.platform_base_units) == split(job.amount_base_units, 1000)
    assert (await client.wallet()).token_base_units == before - job.amount_base_units
    await assert_money_is_conserved(client, network)
    checks = await client.verify_ledger()
    assert [check.differences for check in checks] == [[]] * len(checks) and len(checks) == 7

    archive = tmp_path / "model.cyxmodel"
    await client.download(submitted.job_id, archive)
    delivered = cx.load_model(archive)
    delivered.save(tmp_path / "model.safetensors")
    assert set(safetensors.numpy.load_file(tmp_path / "model.safetensors")) == set(delivered.weights)
    again = evaluated_in_a_new_process(tmp_path / "model.safetensors", job)
    assert again["loss"] == view.summary.validation_loss
    assert again[metric.removeprefix("validation_")] == getattr(view.summary, metric)


async def test_an_operator_verifies_the_ledger_and_freezes_and_releases_payouts(client, network):
    async def cyx(*arguments):
        command = [sys.executable, "-m", "cyxnet", "--dir", str(network.folder), *arguments]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)

    assert "payouts are frozen: the night" in (await cyx("payouts", "--freeze", "the night")).stdout
    submitted = await client.submit(jobfile.load(EXAMPLES / "diabetes.toml"))
    async with contextlib.aclosing(client.watch(submitted.job_id)) as updates:
        async for update in updates:
            if update.kind == "Completed":
                break
    view = await client.job(submitted.job_id)
    assert view.status == "settling"  # trained, and not paid
    assert "FROZEN, nothing is paid: the night" in (await cyx("nodes")).stdout
    assert "operator" in (await client.explain(submitted.job_id)).waiting_for
    assert (await cyx("payouts", "--release", "it is day")).stdout.strip() == "payouts are made"
    assert (await client.wait(submitted.job_id)).status == "completed"
    verified = await cyx("ledger", "verify")
    assert (verified.returncode, verified.stdout.count("the same")) == (0, 7), verified
    now = datetime.now(UTC).isoformat()
    balances = json.loads((await cyx("ledger", "at", now, "--json")).stdout)["balances"]
    assert balances[f"wallet:{view.client}"] == (await client.wallet()).token_base_units
    assert json.loads((await cyx("ledger", "at", "2020-01-01", "--json")).stdout)["balances"] == {}
    assert (await cyx("ledger", "at", "2020-01-01")).stdout.strip() == "no account held anything at 2020-01-01"
    assert "expected a time such as" in (await cyx("ledger", "at", "noon")).stderr
    wrong = await cyx("ledger", "verify", "now")
    assert (wrong.returncode, "one SELECT" in wrong.stderr) == (2, True)


async def test_a_job_is_charged_no_more_than_its_quote_and_its_node_sees_what_it_earned(tmp_path):
    async with LocalNetwork(tmp_path / "net", nodes=0, heartbeat_ms=500, lease_ms=4_000) as network:
        command = ("--dir", network.folder, "--name", "node-1", "--price", "3.6")
        await network._part("node-1", "cyxnode", *command).start()

        async def cyx(*arguments):
            command = [sys.executable, "-m", "cyxnet", "--dir", str(network.folder), "--json", *map(str, arguments)]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
            return done, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}

        example, price = EXAMPLES / "diabetes.toml", tmp_path / "price.json"
        _, quote = await cyx("quote", example, "-o", price)
        most = quote["price"]["max_base_units"]
        assert 10_000_000 < most == quote["prices"][0]["base_units"] < 100_000_000  # some ten seconds at 0.001 CYX each
        assert quote["flops"] > 0 and quote["bytes_moved"] > 0
        async with await AsyncClient.connect(network.folder) as client:  # who asks for a price need not have it yet
            await client.faucet(5_000_000_000)
        done, _ = await cyx("submit", example, "--quote", price, "--wait")
        assert done.returncode == 0, done.stderr
        async with await AsyncClient.connect(network.folder) as client:
            [view] = (await client.jobs()).jobs
            assert view.price_base_units == view.node_base_units + view.platform_base_units == most
            assert (await client.wallet()).token_base_units == 5_000_000_000 - most
        refused, _ = await cyx("submit", EXAMPLES / "digits.toml", "--quote", price)
        assert (refused.returncode, "for another job" in refused.stderr) == (2, True)
        _, earned = await cyx("earnings", "node-1")
        assert (earned["gross_base_units"], earned["net_base_units"]) == (most, view.node_base_units)
        _, why = await cyx("earnings", "--explain", view.job_id)
        [part] = why["payments"]
        assert part["work"][0].startswith("steps 0 to ") and part["signature"] == view.settle_signature
        assert "no node is called node-9" in (await cyx("earnings", "node-9"))[0].stderr


def evaluated_in_a_new_process(model_path, job):
    """The validation metrics of a delivered file, computed with cyxcore alone."""
    code = """
import json, sys
import msgspec
import cyxcore as cx
from cyxcore import data
from cyxcore.spec import DataSpec, TrainingSpec
model_path, data_path, spec, training = sys.argv[1:]
spec, training = msgspec.json.decode(spec, type=DataSpec), msgspec.json.decode(training, type=TrainingSpec)
dataset = data.load(data_path, spec, loss=training.loss, seed=training.seed)
print(json.dumps(cx.load_model(model_path).evaluate(dataset.x_val, dataset.y_val)))
"""
    specs = (msgspec.json.encode(spec).decode() for spec in (job.data, job.training))
    command = [sys.executable, "-c", code, str(model_path), str(job.data_path), *specs]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


async def test_a_module_from_python_is_traced_and_trained(client, network, tmp_path):
    class Small(cx.nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = cx.nn.Linear(64, 32)
            self.out = cx.nn.Linear(32, 10)

        def forward(self, x):
            return self.out(self.hidden(x).relu())

    submitted = await client.submit_module(
        Small(), data=EXAMPLES / "digits.csv", amount="1.5", training=TrainingSpec(epochs=5)
    )
    view = await client.wait(submitted.job_id)
    assert view.status == "completed", view.error
    assert view.summary.validation_accuracy > 0.9
    await assert_money_is_conserved(client, network)


async def test_a_script_without_any_cyx_import_submits_and_follows_a_job(network):
    script = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",  # the script's own folder and environment stay out of it
        str(EXAMPLES / "plain_nats.py"),
        str(network.folder / "network.json"),
        str(EXAMPLES / "digits.csv"),
        stdout=asyncio.subprocess.PIPE,
        cwd=network.folder,  # its key is kept there
    )
    async with asyncio.timeout(60):
        said, _ = await script.communicate()
    lines = said.decode().splitlines()
    assert script.returncode == 0
    assert "job-submit" in lines[0]
    assert sum(line.startswith("epoch ") for line in lines) == 5
    assert lines[-1].startswith("status: completed")
    assert "import cyx" not in (EXAMPLES / "plain_nats.py").read_text()


async def test_a_cancelled_job_is_refunded_whole(client, network):
    before = (await client.wallet()).token_base_units
    submitted = await client.submit(endless("digits.toml"))
    await client.cancel(submitted.job_id, "changed my mind")
    view = await client.wait(submitted.job_id)
    assert (view.status, view.error) == ("cancelled", "changed my mind")
    assert (await client.wallet()).token_base_units == before
    with pytest.raises(CyxError, match="cannot be cancelled"):
        await client.cancel(submitted.job_id)
    await assert_money_is_conserved(client, network)


async def test_what_a_node_and_the_platform_earned_goes_wherever_they_send_it(client, network):
    submitted = await client.submit(jobfile.load(EXAMPLES / "diabetes.toml"))
    assert (await client.wait(submitted.job_id)).status == "completed"
    to, total = "7cHeo7vk7mJA7AdhSkU9hoYZy1xVWJCrTMhE1wM2Bip3", 0
    for whose in (["--node", "node-1"], ["--central"]):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "cyxnet", "--dir", network.folder, "--json", "send", to, "all", *whose],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        total += json.loads(done.stdout.splitlines()[-1])["data"]["amount_base_units"]
    assert total == submitted.terms.amount_base_units == (await client.wallet(to)).token_base_units


async def test_submitting_the_same_job_twice_is_one_job(client, network):
    prepared = await client.prepare(jobfile.load(EXAMPLES / "digits.toml"))
    first = await client.place(prepared)
    second = await client.place(prepared)
    assert (second.job_id, second.duplicate) == (first.job_id, True)
    assert (await client.jobs()).total == 1


async def test_the_ledger_is_rebuilt_from_the_log_to_the_same_hash(client, network, tmp_path):
    from cyxcentral.central import Central, Settings

    submitted = await client.submit(jobfile.load(EXAMPLES / "diabetes.toml"))
    await client.wait(submitted.job_id)
    node = network.parts["node-1"].process.pid
    os.kill(node, signal.SIGSTOP)  # what it says of its hardware would go on, and be in the second ledger only
    await until_node_is(client, "offline")
    hashes = []
    for name in ("one", "two"):  # each starts without a ledger and reads the log from its beginning
        central = await Central.start(Settings(network=network.file, keys=network.folder, state=tmp_path / name))
        hashes.append(await central.ledger.content_hash())
        rows = (await central.ledger.query("select status from jobs", 10)).rows
        assert rows == [["completed"]]
        await central.close()
    os.kill(node, signal.SIGCONT)
    assert hashes[0] == hashes[1]


async def test_each_wish_for_test_money_is_granted_once(client, network):
    ask = m.FaucetRequest(address=client.purse.address, amount_base_units=5, lamports=900_000, request_id="wish-1")
    subject, before = subjects.api(client.caller, "wallet.faucet"), await client.wallet()
    replies = [await client.bus.ask(subject, ask, m.FaucetReply, timeout_s=30) for _ in range(2)]
    assert replies[0] == replies[1]
    await asyncio.gather(*[client.faucet(5, lamports=0) for _ in range(4)])  # in one block: they counted once
    after = await client.wallet()
    assert after.token_base_units == before.token_base_units + 5 * 5
    assert after.lamports == before.lamports + 900_000
    await assert_money_is_conserved(client, network)
