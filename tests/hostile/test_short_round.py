"""A short campaign in every run of the tests, and that it would see what it looks for."""

import asyncio
import random

import pytest

from cyxnet import credentials
from cyxnet import messages as m
from cyxnet.bus import Bus, NotAdmitted
from cyxnet.codec import JSON, MSGPACK, BadMessage, decode
from tests.hostile.__main__ import table
from tests.hostile.campaign import Campaign, Options, play
from tests.hostile.mutations import KINDS, NEVER, Base, Others, spoil
from tests.hostile.scene import Scene, untyped
from tests.hostile.wire import Wire

SHORT = Options(messages=20_000, seed=4, callers=6, nodes=3)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_twenty_thousand_malformed_messages_leave_no_trace(tmp_path):
    found, _ = await play(tmp_path / "net", SHORT)
    said = "\n".join([*found.violations, table(found)])
    assert found.violations == [], said
    assert found.sent == SHORT.messages, said
    for layer in ("decoding", "identity", "a handler refused it", "accepted", "fenced", "the broker hangs up"):
        assert found.layers[layer], said
    for kind in KINDS:
        assert found.kinds[kind.verb], said
    assert found.codes.keys() >= {"bad_message", "bad_signature", "bad_transaction", "not_yours", "wrong_node"}, said


async def test_a_campaign_sees_what_is_written_and_what_is_taken(tmp_path):
    async with Scene(tmp_path / "net", 1, callers=1, nodes=1) as scene:
        # a message that is right, said to be one that must be refused
        campaign = Campaign(scene, Options(messages=1, seed=1))
        await campaign._connect()
        campaign.found.grown = {stream: [seq] for stream, seq in (await campaign._last_seqs()).items()}
        right = Base(next(kind for kind in KINDS if kind.verb == "artifact.put"), scene.clients[0].caller, b"x")
        shot = spoil(right, random.Random(0), scene.others)
        shot.certain = shot.answered = True
        shot.rude, shot.reply, shot.payload, shot.block = None, None, b"some bytes", b""
        shot.subject = f"cyx.v1.api.{right.speaker}.artifact.put"
        await campaign._fire(0, shot)
        await campaign._all_answered()
        await campaign._look("now")
        assert [violation.split()[0] for violation in campaign.found.violations] == ["message", "CYX_BLOBS"]


OTHERS = Others(("c-1", "c-2"), ("job-1", "job-2"), ("0" * 32, "f" * 32))
STATUS = Base(next(kind for kind in KINDS if kind.verb == "job.status"), "c-1", untyped(m.JobRef(job_id="abc")))


def test_a_message_is_made_from_the_seed_and_its_number_alone():
    made = [spoil(STATUS, random.Random("1 7"), OTHERS) for _ in range(2)]
    assert made[0] == made[1]


def test_what_is_called_certain_is_refused_when_it_is_read():
    read = 0
    for number in range(3_000):
        shot = spoil(STATUS, random.Random(number), OTHERS)
        if shot.certain and shot.answered and shot.rude is None and "odd headers" not in shot.spoilt:
            if "another content type" in shot.spoilt:
                continue
            read += 1
            with pytest.raises(BadMessage):
                decode(m.JobRef, shot.payload or b"{}", shot.content_type)
    assert read > 300


@pytest.mark.parametrize("name", NEVER)
@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
def test_what_can_never_be_right_is_refused_where_anything_may_stand(name, content_type):
    spoilt = bytes(NEVER[name](content_type))
    payload = b'{"layers":[{"p":' + spoilt + b"}]}" if content_type == JSON else b"\x81\xa6layers\x91\x81\xa1p" + spoilt
    with pytest.raises(BadMessage):
        decode(m.ModelSpec, payload, content_type)


async def test_a_caller_who_floods_is_thrown_out_and_kept_out_and_nobody_else_is(tmp_path):
    async with Scene(tmp_path / "net", 1, callers=1, nodes=1) as scene:
        flooder, url = scene.clients[0], scene.network.file.client_url
        wire = Wire(url, credentials.as_client(flooder.keys), lambda answer: None)
        await wire.opened()
        command = f"PUB cyx.v1.api.{flooder.caller}.network.info {wire.inbox}.x 2\r\n{{}}\r\n".encode()
        async with asyncio.timeout(60):
            while not wire.endings:
                wire.send(command * 1_000)
                await asyncio.wait_for(scene.honest.info(), 60)
        wire.close()
        with pytest.raises(NotAdmitted):
            await Bus.connect(url, name="again", credentials=credentials.as_client(flooder.keys))
        await scene.nodes[0].heartbeat()
