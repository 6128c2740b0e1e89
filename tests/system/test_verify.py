"""`cyx verify`: a finished job is trained again by somebody who trusts nobody, and its bytes are compared."""

import asyncio
import io
import json
import subprocess
import sys

import pytest
from msgspec.structs import replace

import cyxcore as cx
from cyxnet import artifacts, jobfile
from cyxnet.cli.screen import PlainScreen
from cyxnode import verify
from tests.system.conftest import EXAMPLES, endless, until


@pytest.fixture
async def finished(client, standing):
    """The id of a job that was paused on its way, which stores a checkpoint."""
    standing.after(epoch=1)
    submitted = await client.submit(jobfile.load(EXAMPLES / "digits.toml"))
    await until(client, submitted.job_id, "epoch")
    await client.pause(submitted.job_id)
    await until(client, submitted.job_id, "Checkpointed")
    await client.resume(submitted.job_id)
    view = await client.wait(submitted.job_id)
    assert view.status == "completed", view.error
    assert view.checkpoint
    return view.job_id


async def cyx(network, *arguments):
    command = [sys.executable, "-m", "cyxnet", "--dir", str(network.folder), "--json", "verify", *arguments]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)


def verdict(ran):
    return json.loads(ran.stdout.splitlines()[-1])["data"]


async def test_a_job_trained_again_elsewhere_and_with_one_thread_gives_the_same_bytes(client, network, finished):
    ran = await cyx(network, finished, "--threads", "1")
    assert ran.returncode == 0, ran.stderr
    found = verdict(ran)
    view = await client.job(finished)
    assert found["same"] and found["from_step"] == 0
    assert found["steps"] == view.summary.steps
    assert found["segments"] == 2 and not found["wrong"]  # the state that it was paused at is compared too
    assert found["trained_sha256"] == found["delivered_sha256"] == view.model.sha256


async def test_the_tail_goes_on_from_the_newest_checkpoint(client, network, finished):
    ran = await cyx(network, finished, "--tail")
    assert ran.returncode == 0, ran.stderr
    found = verdict(ran)
    assert found["same"]
    assert found["from_step"] == (await client.job(finished)).checkpoint.step


async def test_one_segment_is_trained_again_alone(client, network, finished):
    paused = (await client.job(finished)).checkpoint.step
    ran = await cyx(network, finished, "--segment", str(paused))
    assert ran.returncode == 0, ran.stderr
    found = verdict(ran)
    assert found["same"] and (found["from_step"], found["to_step"], found["segments"]) == (0, paused, 1)
    ran = await cyx(network, finished, "--segment", "any")
    assert ran.returncode == 0, ran.stderr
    assert verdict(ran)["segments"] == 1
    ran = await cyx(network, finished, "--segment", str(paused + 1))
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert f"no segment of the job ends at {paused + 1}; those that it has end at {paused}, model" in ran.stderr


async def test_a_model_that_its_data_does_not_give_is_found_and_what_differs_is_said(
    client, network, finished, tmp_path, monkeypatch
):
    """One weight is another: as if the node had delivered that, and signed it."""
    true, forged = tmp_path / "true.cyxmodel", tmp_path / "forged.cyxmodel"
    await client.download(finished, true)
    model = cx.load_model(true)
    name = sorted(model.weights)[0]
    model.weights[name] = model.weights[name].copy()
    model.weights[name].flat[0] += 0.25
    model.save(forged)
    history = await verify.read_history(client, await client.job(finished))
    ref = await artifacts.put(client.bus, client.caller, forged)
    history.parts[-1] = replace(history.parts[-1], end=ref)

    async def deliver(job_id, path):
        await artifacts.get(client.bus, client.caller, ref.sha256, path)

    monkeypatch.setattr(client, "download", deliver)
    found = await verify.verdict_of(
        client, finished, history, tmp_path, verify.Options(tail=False, threads=1), PlainScreen(io.StringIO())
    )
    assert not found.same
    assert [(each.from_step, each.to_step) for each in found.wrong] == [(history.parts[-1].from_step, 0)]
    assert found.differences == [f"{name} differs by up to 0.25"]
    assert "is NOT what its data gives" in verify.in_words(found)


async def test_a_job_whose_products_depend_on_the_processor_is_refused_by_its_class(client, network):
    job = await client.submit(jobfile.load(EXAMPLES / "digits.toml", numerics="fast"))
    view = await client.wait(job.job_id)
    assert view.status == "completed" and view.summary.numerics == "cyx-fast/1"
    ran = await cyx(network, job.job_id)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert f"{job.job_id} cannot be verified: it was trained with numerics fast" in ran.stderr


async def test_what_cannot_be_verified_is_said(client, network):
    ran = await cyx(network, "no-such-job")
    assert ran.returncode == 2 and "no-such-job" in ran.stderr and "Traceback" not in ran.stderr
    submitted = await client.submit(endless("digits.toml"))
    await client.cancel(submitted.job_id)
    await client.wait(submitted.job_id)
    ran = await cyx(network, submitted.job_id)
    assert ran.returncode == 2 and "has no model" in ran.stderr
