"""A checkpoint that was stored and is gone: the job goes on from the one before, to the same model."""

import json

import pytest
from msgspec.structs import replace

from cyxnet import jobfile, subjects
from cyxnet.bus import Bus
from cyxnet.messages import CheckpointPolicy
from tests.system.conftest import EXAMPLES, assert_money_is_conserved, until


@pytest.fixture
def job():
    job = jobfile.load(EXAMPLES / "digits.toml")
    return replace(job, checkpoints=CheckpointPolicy(every_steps=400, every_s=0.0))


async def damage(network, state, how):
    """The store loses a chunk of a checkpoint, or keeps other bytes under its name."""
    core = await Bus.connect(network.file.core_url, name="test")
    manifest = json.loads((await core.last(subjects.BLOBS, subjects.manifest(state.sha256))).payload)
    chunk = subjects.chunk(manifest["chunks"][-1])
    stored = await core.last(subjects.BLOBS, chunk)
    if how == "erased":
        await core.request(f"$JS.API.STREAM.MSG.DELETE.{subjects.BLOBS}", b'{"seq":%d}' % stored.seq)
    else:
        await core.append(chunk, stored.payload[:-1] + bytes([stored.payload[-1] ^ 1]))
    await core.close()


@pytest.mark.parametrize("how", ["erased", "a bit flipped"])
async def test_training_goes_on_from_the_checkpoint_before_a_bad_one_to_the_same_bytes(
    client, network, standing, job, how
):
    whole = await client.submit(job)
    expected = (await client.wait(whole.job_id)).model

    standing.after(epoch=10)
    submitted = await client.submit(job)
    await until(client, submitted.job_id, "Checkpointed")
    await until(client, submitted.job_id, "epoch", count=10)
    await client.pause(submitted.job_id)  # with a checkpoint of its own
    await until(client, submitted.job_id, "LeaseLost")
    newest = (await client.job(submitted.job_id)).checkpoint
    await damage(network, newest.state, how)
    await client.resume(submitted.job_id)
    view = await client.wait(submitted.job_id)
    assert (view.status, view.attempt) == ("completed", 3), view.error
    assert view.model == expected
    decisions = (await client.explain(submitted.job_id)).decisions
    assert [decision.get("first_step", 0) for decision in decisions][:2] == [0, newest.step]
    assert 0 < decisions[2]["first_step"] < newest.step
    discarded = decisions[1]["lost"]
    assert discarded["discards"]["step"] == newest.step and "given up for the one before it" in discarded["reason"]
    await assert_money_is_conserved(client, network)
