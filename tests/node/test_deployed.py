"""Replicas on a node, asked over a real broker: who is answered, how much at once, and how each of them ends."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from msgspec.structs import replace

from cyxcore.model import save_model
from cyxnet import asking, subjects
from cyxnet import messages as m
from cyxnet.asking import Part, Question
from cyxnet.broker import Broker
from cyxnet.bus import Bus
from cyxnet.credentials import as_client
from cyxnet.gateway import Gateway
from cyxnet.httpserver import Server
from cyxnet.identity import Identity
from cyxnet.questions import BrokenOff, NoReplica, Questions
from tests.core import llamas
from tests.doorkeeper import DEPLOYMENT
from tests.node.fake_central import FakeCentral, make_assign
from tests.node.serving.models import mlp, samples
from tests.node.serving.test_gguf import SIZES, vocabulary

Start = Callable[..., Any]
WAIT_S = 60.0
OWNER, OTHER = (as_client(Identity(letter * 32)) for letter in (b"o", b"s"))
ENDLESS = {"model": "tiny", "prompt": "hello", "max_tokens": 48, "stream": True, "logit_bias": {"256": -100}}


class Asker:
    def __init__(self, bus: Bus, caller: str):
        self.bus, self.caller = bus, caller
        self.questions = Questions(bus, caller)

    async def ask(self, body: Any = None, route: str = "/v1/predict", **options: Any) -> Part:
        encoded = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.questions.answer(DEPLOYMENT, Question(body=encoded, route=route), **options)


@pytest.fixture
async def join(broker: Broker) -> AsyncIterator[Callable[..., Any]]:
    """join(credentials) gives an Asker."""
    joined: list[Bus] = []

    async def come(who: Any) -> Asker:
        bus = await Bus.connect(broker.url("client"), name=who.id, credentials=who)
        joined.append(bus)
        return Asker(bus, who.id)

    yield come
    for bus in joined:
        await bus.close()


@pytest.fixture
def model_bytes(tmp_path: Path) -> bytes:
    held = mlp()
    save_model(tmp_path / "m.cyxmodel", held.graph, held.weights, classes=held.classes)
    return (tmp_path / "m.cyxmodel").read_bytes()


@pytest.fixture
def language_bytes(tmp_path: Path) -> bytes:
    llamas.write(tmp_path / "t.gguf", llamas.sizes(vocabulary=257, **SIZES), "Q8_0", **vocabulary())
    return (tmp_path / "t.gguf").read_bytes()


async def serve(
    node: Any, central: FakeCentral, content: bytes, model_format: m.ModelFormat = "cyxmodel", **options: Any
) -> Any:
    """Have the node take a replica of this model; the registration is returned."""
    register = await central.wait_for("register")
    await asyncio.wait_for(node.ready.wait(), WAIT_S)
    spec = {name: options.pop(name) for name in ("public", "drain_s") if name in options}
    serving = m.ServeSpec(deployment=DEPLOYMENT, format=model_format, seconds=3600, **spec)
    assign = make_assign(register, central.store.add(content), serve=serving, **options)
    reply = await central.command(register.node_id, replace(assign, owner=OWNER.id))
    assert reply.accepted, reply.reason
    return register


def replicas() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "cyxnode.replica" in child.cmdline()
    ]


async def test_a_replica_says_that_it_started_when_it_answers_and_heartbeats_say_how_much(
    central: FakeCentral, start_node: Start, join: Any, model_bytes: bytes
) -> None:
    await serve(await start_node(), central, model_bytes)
    await central.wait_for("started")
    owner = await join(OWNER)
    answer = await owner.ask({"input": samples(3).tolist(), "classes": True})
    assert answer.status == 200 and json.loads(answer.body)["output"] == mlp().predict(samples(3)).tolist()
    assert json.loads((await owner.ask(route="/v1/model")).body)["kind"] == "tensors"
    beat = await central.wait_for("heartbeat", lambda beat: bool(beat.runs) and beat.runs[0].requests == 2)
    run = beat.runs[0]
    assert (run.phase, run.waiting, run.answers_pings) == ("training", 0, True)


async def test_a_model_is_asked_for_again_while_central_is_busy(
    central: FakeCentral, start_node: Start, model_bytes: bytes
) -> None:
    central.too_busy = 2
    await serve(await start_node(), central, model_bytes)
    await central.wait_for("started")
    assert not central.too_busy


@pytest.mark.parametrize("public", [False, True])
async def test_others_are_answered_only_where_the_deployment_is_public(
    central: FakeCentral, start_node: Start, join: Any, model_bytes: bytes, public: bool
) -> None:
    await serve(await start_node(), central, model_bytes, public=public)
    await central.wait_for("started")
    answer = await (await join(OTHER)).ask({"input": samples(1)[0].tolist()})
    assert answer.status == (200 if public else 403)
    assert public or json.loads(answer.body)["error"]["code"] == "not_allowed"


async def test_a_question_whose_answer_would_go_to_somebody_else_is_not_answered(
    central: FakeCentral, start_node: Start, join: Any, model_bytes: bytes
) -> None:
    await serve(await start_node(), central, model_bytes)
    await central.wait_for("started")
    owner, other, heard = await join(OWNER), await join(OTHER), []
    await other.bus.attend(subjects.reply(OTHER.id, ">"), heard.append)
    for reply in (subjects.reply(OTHER.id, "t"), "cyx.v1.cmd.desk", subjects.api(OTHER.id, "job.list"), ""):
        owner.bus.send(subjects.infer(DEPLOYMENT, OWNER.id), b"", asking.question_headers(Question()), reply)
    assert (await owner.ask(route="/health")).status == 200  # it came behind them
    await other.bus.round_trip()
    assert heard == []


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Cyx-Route": "no route"}, b"{}", 400),
        ({"Cyx-Timeout-Ms": "-1"}, b"{}", 400),
        ({"Content-Type": "text/plain"}, b"{}", 415),
        ({"Content-Type": "x" * 100_000}, b"{}", 400),
        ({}, b"\x00" * 100_000, 400),
        ({}, b"", 405),
    ],
)
async def test_what_is_no_question_is_refused_in_one_part(
    central: FakeCentral,
    start_node: Start,
    join: Any,
    model_bytes: bytes,
    headers: dict[str, str],
    body: bytes,
    status: int,
) -> None:
    await serve(await start_node(), central, model_bytes)
    await central.wait_for("started")
    owner, heard = await join(OWNER), asyncio.Queue[Any]()
    await owner.bus.attend(subjects.reply(OWNER.id, ">"), heard.put_nowait)
    owner.bus.send(subjects.infer(DEPLOYMENT, OWNER.id), body, headers, subjects.reply(OWNER.id, "t"))
    message = await heard.get()
    part = asking.part_of(message.data, message.headers)
    assert (part.status, part.end, part.number) == (status, True, 0), part


async def test_a_stream_comes_in_parts_and_ends_when_its_asker_says_stop(
    central: FakeCentral, start_node: Start, join: Any, language_bytes: bytes
) -> None:
    await serve(await start_node(), central, language_bytes, "gguf")
    await central.wait_for("started")
    owner = await join(OWNER)
    question = Question(body=json.dumps(ENDLESS).encode(), route="/v1/completions")
    parts = owner.questions.ask(DEPLOYMENT, question)
    first = await anext(parts)
    assert (first.status, first.content_type, first.end) == (200, "text/event-stream", False)
    await parts.aclose()
    while json.loads((await owner.ask(route="/health")).body)["in_flight"] > 1:  # itself
        pass
    whole = await owner.questions.answer(DEPLOYMENT, question)
    assert whole.body.endswith(b"data: [DONE]\n\n") and whole.body.count(b"data: ") > asking.WINDOW


@pytest.mark.parametrize("how", ["stop", "pause", "shutdown"])
async def test_a_replica_that_is_ended_answers_first_what_it_has_taken(
    central: FakeCentral,
    start_node: Start,
    join: Any,
    language_bytes: bytes,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cyxnode.state.STOP_GRACE_MS", 60_000)  # however busy the machine is
    node = await start_node()
    register = await serve(node, central, language_bytes, "gguf", drain_s=600)  # however busy the machine is
    await central.wait_for("started")
    owner, (process,) = await join(OWNER), replicas()
    parts = owner.questions.ask(DEPLOYMENT, Question(body=json.dumps(ENDLESS).encode(), route="/v1/completions"))
    found = [await anext(parts)]
    if how == "shutdown":
        node.agent.stop("SIGTERM")
    else:
        kind = m.Stop if how == "stop" else m.Pause
        await central.command(register.node_id, kind(job_id="job-1", attempt=1, session=register.session))
    found += [part async for part in parts]
    assert found[-1].end and b"[DONE]" in found[-1].body + found[-2].body
    await asyncio.to_thread(psutil.wait_procs, [process], WAIT_S)
    assert not process.is_running()
    if how != "stop":
        code = {"pause": "paused", "shutdown": "node_stopped"}[how]
        assert (await central.wait_for("failed")).code == code
    with pytest.raises(NoReplica):
        await owner.ask(route="/health", patience_s=0.2)


async def test_no_question_and_no_part_of_an_answer_is_lost_when_the_connection_of_a_replica_is_renewed(
    central: FakeCentral, start_node: Start, join: Any, language_bytes: bytes
) -> None:
    node = await start_node(session_s=0.9)
    await serve(node, central, language_bytes, "gguf")
    await central.wait_for("started")
    owner = await join(OWNER)
    question = Question(body=json.dumps(ENDLESS).encode(), route="/v1/completions")

    async def ask(many: int) -> None:
        while len(node.replica_buses) < many:  # a lost one would be silence, and be waited for until the test fails
            parts = [part async for part in owner.questions.ask(DEPLOYMENT, question, silence_s=60)]
            assert b"[DONE]" in parts[-1].body + parts[-2].body

    async with asyncio.timeout(60):
        await asyncio.gather(*[ask(6) for _ in range(3)])
        while any(bus.connected for bus in node.replica_buses[:3]):
            await owner.ask(route="/health")
    assert central.count("started") == 1


async def test_a_run_that_takes_the_place_of_a_replica_waits_until_it_has_answered_and_given_its_memory_back(
    central: FakeCentral, start_node: Start, join: Any, language_bytes: bytes, model_bytes: bytes
) -> None:
    node = await start_node()
    register = await serve(node, central, language_bytes, "gguf", drain_s=600)
    await central.wait_for("started")
    owner = await join(OWNER)
    parts = owner.questions.ask(DEPLOYMENT, Question(body=json.dumps(ENDLESS).encode(), route="/v1/completions"))
    await anext(parts)
    await central.command(register.node_id, m.Stop(job_id="job-1", attempt=1, session=register.session))
    await serve(node, central, model_bytes, job_id="job-2")
    await central.wait_for("heartbeat", lambda beat: [run.job_id for run in beat.runs] == ["job-2"])
    seen = central.count("heartbeat")
    await central.wait_for("heartbeat", lambda beat: central.count("heartbeat") > seen + 3)
    assert len(replicas()) == 1
    await parts.aclose()
    await central.wait_for("started", lambda said: said.job_id == "job-2")


async def test_a_replica_that_dies_is_reported_and_who_waits_for_it_is_told(
    central: FakeCentral, start_node: Start, join: Any, language_bytes: bytes
) -> None:
    node = await start_node()
    await serve(node, central, language_bytes, "gguf")
    await central.wait_for("started")
    owner = await join(OWNER)
    parts = owner.questions.ask(DEPLOYMENT, Question(body=json.dumps(ENDLESS).encode(), route="/v1/completions"))
    await anext(parts)
    replicas()[0].kill()
    failed = await central.wait_for("failed")
    assert (failed.code, failed.deterministic) == ("process_died", False)
    with pytest.raises(BrokenOff):
        async for _ in parts:
            pass
    assert not node.task.done()


async def test_a_model_that_cannot_be_read_fails_as_the_jobs_fault(central: FakeCentral, start_node: Start) -> None:
    await serve(await start_node(), central, b"no model at all")
    failed = await central.wait_for("failed")
    assert (failed.code, failed.deterministic) == ("bad_file", True)
    assert central.count("started") == 0


async def test_a_replica_that_shall_compute_on_a_gpu_is_refused_and_not_served_on_the_cpu(
    central: FakeCentral, start_node: Start, model_bytes: bytes
) -> None:
    await serve(await start_node(), central, model_bytes, needs=m.Needs(device="cuda"))
    failed = await central.wait_for("failed")
    assert (failed.code, failed.deterministic, central.count("started")) == ("no_kernel", True, 0)


async def test_an_unfunded_replica_is_loaded_and_answers_nobody_before_it_is_begun(
    central: FakeCentral, start_node: Start, join: Any, model_bytes: bytes
) -> None:
    register = await serve(await start_node(), central, model_bytes, funded=False)
    await central.wait_for("heartbeat", lambda beat: [run.phase for run in beat.runs] == ["ready"])
    owner = await join(OWNER)
    with pytest.raises(NoReplica):
        await owner.ask(route="/health", patience_s=0.2)
    await central.command(register.node_id, m.Begin(job_id="job-1", attempt=1, session=register.session))
    await central.wait_for("started")
    assert (await owner.ask(route="/health")).status == 200


async def test_a_replica_that_is_begun_before_its_model_is_loaded_goes_on_loading(
    central: FakeCentral, start_node: Start, model_bytes: bytes
) -> None:
    node = await start_node()
    register = await serve(node, central, model_bytes, funded=False)
    async with asyncio.timeout(WAIT_S):
        while not any(work.process for work in node.agent._runs._works.values()):  # started, and far from warm
            await central.bus.round_trip()
    await central.command(register.node_id, m.Begin(job_id="job-1", attempt=1, session=register.session))
    await central.wait_for("started")
    assert central.count("failed") == 0


async def test_a_replica_that_never_began_is_ended_too(
    central: FakeCentral, start_node: Start, model_bytes: bytes
) -> None:
    register = await serve(await start_node(), central, model_bytes, funded=False)
    await central.wait_for("heartbeat", lambda beat: [run.phase for run in beat.runs] == ["ready"])
    await central.command(register.node_id, m.Pause(job_id="job-1", attempt=1, session=register.session))
    assert (await central.wait_for("failed")).code == "paused"


# -- behind HTTP here -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def gateway_of(questions: Questions, patience_s: float = WAIT_S) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway to the deployment."""
    server = await Server.start(Gateway(questions, DEPLOYMENT, patience_s), "127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S) as http:
            yield http
    finally:
        await server.close()


@pytest.fixture
async def gateway(join: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway to the deployment, in the name of its owner."""
    async with gateway_of((await join(OWNER)).questions) as http:
        yield http


async def test_the_openai_client_talks_to_a_deployed_model_through_the_gateway(
    central: FakeCentral, start_node: Start, gateway: httpx.AsyncClient, language_bytes: bytes
) -> None:
    await serve(await start_node(), central, language_bytes, "gguf")
    await central.wait_for("started")
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0) as client:
        assert [each.id async for each in client.models.list()] == ["tiny"]
        asked: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 40, "temperature": 0}
        whole = await client.completions.create(**asked)
        stream = await client.completions.create(**asked, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(**asked | {"model": "another"})
        vectors = await client.embeddings.create(model="tiny", input="hello")
        assert len(vectors.data[0].embedding) == 64
        stream = await client.completions.create(**asked | {"max_tokens": 100}, stream=True)
        await anext(aiter(stream))
        await stream.close()  # hanging up ends it at the replica
    while (await gateway.get("/health")).json()["in_flight"] > 1:
        pass


async def test_the_gateway_says_what_it_cannot_pass_on(join: Any) -> None:
    async with gateway_of((await join(OWNER)).questions, patience_s=0.2) as gateway:
        found = {
            "method": await gateway.put("/v1/predict", content=b"{}"),
            "path": await gateway.get("/no such%20path"),
            "empty": await gateway.post("/v1/predict"),
            "large": await gateway.post("/v1/predict", content=b"x" * 2_000_000),
            "packed": await gateway.post("/v1/predict", content=b"{}", headers={"Content-Encoding": "gzip"}),
            "nobody": await gateway.post("/v1/predict", content=b"{}", headers={"Content-Encoding": "identity"}),
            "live": await gateway.get("/livez"),
        }
    assert {name: answer.status_code for name, answer in found.items()} == {
        "method": 405,
        "path": 404,
        "empty": 400,
        "large": 413,
        "packed": 415,
        "nobody": 503,
        "live": 200,
    }
    assert found["method"].headers["Allow"] == "GET, POST"
    assert found["nobody"].json()["error"]["code"] == "no_replica"
    assert found["packed"].json()["error"]["message"] == "expected a body as it is, got Content-Encoding 'gzip'"
