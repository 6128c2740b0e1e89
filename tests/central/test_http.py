"""The HTTP front as its callers meet it: a real server, over real sockets."""

import asyncio
import contextlib
import gzip
import hashlib
import itertools
import json
import re
import subprocess
import sys
from typing import get_args

import httpx
import msgspec
import pytest
from msgspec.structs import replace

from cyxcentral.http.app import Limits
from cyxcentral.http.routes import ROUTES
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import COSTS_ONE_MORE_BYTES, ApiError
from cyxnet.credentials import USER, as_client, caller_id, nkey, session_bytes, session_request
from cyxnet.identity import Identity
from cyxnet.ratelimit import NEWCOMERS_AT_ONCE
from cyxnet.subjects import VERBS
from tests.central import facts as f
from tests.central.http_central import ALICE, BOB, NETWORK_ID, OPERATOR, HttpCentral, bearer, builtins, soon


@pytest.fixture
async def central(broker):
    async with HttpCentral.open(broker) as running:
        yield running


async def job(central, job_id="job-1"):
    """A job in the log, whose events watchers are told of."""
    central.events.applied.append(lambda stored, record: tell(central, stored, record))
    event = replace(f.submitted(job_id), caller=as_client(ALICE).id)
    await central.small.say(subjects.job_event(job_id), event)


def tell(central, stored, record):
    job_id = subjects.last_token(stored.subject)
    update = m.Update(
        job_id=job_id,
        source="event",
        seq=stored.seq,
        at_ms=record.at_ms,
        kind=type(record.event).__name__,
        data=msgspec.to_builtins(record.event),
    )
    central.recent.begin(update, 1) if update.kind == "Submitted" else central.recent.add(update)


async def test_every_verb_has_a_place_and_no_place_is_there_twice():
    assert set(VERBS) <= {route.verb for route in ROUTES}
    places = [(route.method, route.path) for route in ROUTES]
    assert len(set(places)) == len(places)


async def test_a_session_is_opened_used_refreshed_and_ended(central):
    tokens = await central.log_in()
    assert (tokens["token_type"], tokens["expires_in"], tokens["identity"]) == ("Bearer", 900, as_client(ALICE).id)
    assert len(tokens["access_token"]) < 1000
    assert (await central.http.get("/v1/jobs", headers=bearer(tokens["access_token"]))).json() == {
        "jobs": [],
        "total": 0,
        "more": False,
    }
    again = await central.http.post("/v1/sessions/refresh", json={"refresh_token": tokens["refresh_token"]})
    assert again.status_code == 200
    newer = bearer(again.json()["access_token"])
    ended = await central.http.delete(f"/v1/sessions/{tokens['session_id']}", headers=newer)
    assert ended.json()["sessions"][0]["reason"] == "revoked by its owner"
    for token in (tokens["access_token"], again.json()["access_token"]):
        assert (await central.http.get("/v1/jobs", headers=bearer(token))).status_code == 401
    refused = await central.http.post("/v1/sessions/refresh", json={"refresh_token": again.json()["refresh_token"]})
    assert refused.status_code == 401


async def test_who_has_one_key_for_all_is_the_caller_that_it_is_on_the_broker(central):
    drawn = (await central.http.post("/v1/sessions/nonce")).json()
    mine = caller_id(nkey(USER, bytes.fromhex(ALICE.public_key)))
    said = session_bytes(NETWORK_ID, drawn["nonce"], mine, "client")
    ask = {
        "nonce": drawn["nonce"],
        "public_key": ALICE.public_key,
        "identity": mine,
        "signature": ALICE.sign(said),
    }
    answer = await central.http.post("/v1/sessions", json=ask)
    assert (answer.status_code, answer.json()["identity"]) == (201, mine)


def wrong_logins(central, nonce):
    """name -> a request that does not prove who it says it is."""
    from cyxnet.credentials import session_request

    good = session_request(ALICE, NETWORK_ID, nonce)
    bobs = session_request(BOB, NETWORK_ID, nonce)
    return {
        "another's signature": replace(good, signature=bobs.signature),
        "another's identity": replace(good, identity=bobs.identity),
        "another's key": replace(good, public_key=bobs.public_key),
        "another's nkey": replace(good, nkey=bobs.nkey, identity=bobs.identity),
        "another's nkey and binding": replace(good, nkey=bobs.nkey, binding=bobs.binding, identity=bobs.identity),
        "without a binding": replace(good, binding=""),
        "a broken nkey": replace(good, nkey="U" * 56),
        "for another network": session_request(ALICE, "another", nonce),
        "a nonce made up": session_request(ALICE, NETWORK_ID, "f" * 74),
        "no nonce": session_request(ALICE, NETWORK_ID, ""),
        "an operator who is none": session_request(ALICE, NETWORK_ID, nonce, "operator"),
        "a role that was not signed": replace(session_request(OPERATOR, NETWORK_ID, nonce), role="operator"),
        "another's node": session_request(ALICE, NETWORK_ID, nonce, "node", f"node-{BOB.short_id}"),
    }


async def test_who_does_not_prove_his_key_gets_no_session(central):
    nonce = central.tokens.nonce()
    for name, ask in wrong_logins(central, nonce).items():
        answer = await central.http.post("/v1/sessions", json=builtins(ask))
        assert answer.status_code == 401, (name, answer.text)
    assert (await central.access._key_list(as_client(OPERATOR).id, m.KeyListRequest(as_operator=True))).sessions == []


async def test_a_nonce_is_good_once_and_for_a_minute(central):
    from cyxnet.credentials import session_request

    ask = builtins(session_request(ALICE, NETWORK_ID, central.tokens.nonce()))
    codes = [(await central.http.post("/v1/sessions", json=ask)).status_code for _ in range(2)]
    assert codes == [201, 401]
    from cyxcentral.http.tokens import Tokens
    from cyxcentral.machine import MACHINE
    from tests.central.http_central import PLATFORM

    old = Tokens(PLATFORM, NETWORK_ID, lambda: MACHINE.wall_ms() - 62_000, MACHINE.token_hex).nonce()
    late = await central.http.post("/v1/sessions", json=builtins(session_request(ALICE, NETWORK_ID, old)))
    assert late.status_code == 401 and "ask for a new one" in late.text


async def test_a_node_may_send_artifacts_and_nothing_else_until_it_is_banned(central):
    node_id = f"node-a-{ALICE.short_id}"
    await central.small.say(
        subjects.node_event(node_id), replace(f.registered(), node_id=node_id, public_key=ALICE.public_key)
    )
    tokens = await central.log_in(role="node", node_id=node_id)
    mine = bearer(tokens["access_token"])
    assert (await central.http.post("/v1/artifacts/chunks", content=b"bytes", headers=mine)).status_code == 201
    assert (await central.http.get("/v1/jobs", headers=mine)).status_code == 403
    made = await central.http.post("/v1/keys", json={"role": "node"}, headers=mine)
    assert made.status_code == 201
    await central.small.say(subjects.node_event(node_id), m.NodeBanned(until_ms=2**60, reason="it fails"))
    for credential in (tokens["access_token"], made.json()["key"]):
        refused = await central.http.post("/v1/artifacts/chunks", content=b"bytes", headers=bearer(credential))
        assert (refused.status_code, refused.json()["err_code"]) == (401, "unauthorized")


async def test_artifacts_travel_as_bytes(central):
    mine = bearer((await central.key()).key)
    block = bytes(range(256)) * 8
    stored = (await central.http.post("/v1/artifacts/chunks", content=block, headers=mine)).json()
    manifest = {"sha256": stored["sha256"], "size": len(block), "chunks": [stored["sha256"]]}
    assert (await central.http.post("/v1/artifacts/stat", json=manifest, headers=mine)).json()["missing"] == []
    assert (await central.http.post("/v1/artifacts", json=manifest, headers=mine)).status_code == 201
    assert (await central.http.get(f"/v1/artifacts/{stored['sha256']}", headers=mine)).json() == manifest
    fetched = await central.http.get(f"/v1/artifacts/chunks/{stored['sha256']}", headers=mine)
    assert (fetched.content, fetched.headers["content-type"]) == (block, "application/octet-stream")
    assert (await central.http.get(f"/v1/artifacts/{'0' * 64}", headers=mine)).status_code == 404


async def test_what_is_uploaded_beyond_the_quota_is_refused_until_later(broker):
    async with HttpCentral.open(broker, upload_bytes_per_day=1_000) as central:
        headers = bearer((await central.key()).key)
        assert (await central.http.post("/v1/artifacts/chunks", content=b"x" * 100, headers=headers)).status_code == 201
        refused = await central.http.post("/v1/artifacts/chunks", content=b"y" * 100, headers=headers)
        assert (refused.status_code, refused.json()["err_code"]) == (429, "quota")
        assert int(refused.headers["retry-after"]) > 60


async def test_what_is_to_be_read_back_beyond_the_quota_is_refused_before_it_is_read(broker):
    """One chunk, named ten thousand times, cost its sender one message and central six gigabytes to hash."""
    block = b"x" * 512 * 1024
    digest, count = hashlib.sha256(block).hexdigest(), 12_000
    async with HttpCentral.open(broker, upload_bytes_per_day=50_000_000) as central:
        headers = bearer((await central.key()).key)
        put = await central.http.post("/v1/artifacts/chunks", content=block, headers=headers)
        assert put.status_code == 201

        def say(sha256, count):
            named = {"sha256": sha256, "size": len(block) * count, "chunks": [digest] * count}
            return central.http.post("/v1/artifacts", json=named, headers=headers)

        assert (await say(hashlib.sha256(block * 3).hexdigest(), 3)).status_code == 201
        lies = [await say("0" * 64, 6) for _ in range(2)]
        assert [(lie.status_code, lie.json()["err_code"]) for lie in lies] == [(400, "bad_artifact"), (429, "quota")]
        assert "read back" in lies[1].json()["message"] and int(lies[1].headers["retry-after"]) > 60
        assert (await say("0" * 64, count)).status_code == 429


async def test_jobs_are_seen_and_steered_by_their_owner(central):
    await job(central)
    mine, bobs = [bearer((await central.key(who)).key) for who in (ALICE, BOB)]
    assert (await central.http.get("/v1/jobs/job-1", headers=bobs)).json()["status"] == "funding"
    assert (await central.http.get("/v1/jobs?mine=true&limit=5", headers=bobs)).json()["total"] == 0
    assert (await central.http.get("/v1/jobs?mine=true&limit=5", headers=mine)).json()["total"] == 1
    refused = await central.http.post("/v1/jobs/job-1/cancel", headers=bobs)
    assert (refused.status_code, refused.json()["err_code"]) == (403, "not_yours")
    assert (await central.http.post("/v1/jobs/job-1/pause", headers=mine)).json()["pause_requested"]
    cancelled = await central.http.post("/v1/jobs/job-1/cancel", json={"reason": "enough"}, headers=mine)
    assert cancelled.json()["error"] == "enough"
    await central.small.say(subjects.job_event("job-1"), f.FUND_FAILED)
    for wish, body in (("cancel", {}), ("pause", {}), ("resume", {}), ("priority", {"priority": 1})):
        late = await central.http.post(f"/v1/jobs/job-1/{wish}", json=body, headers=mine)
        assert late.status_code == 409 and "it has ended" in late.json()["message"], late.text


BAD_REQUESTS = [
    ("GET", "/v1/jobs?limit=0", None, 400, "bad_message"),
    ("GET", "/v1/jobs?limit=x", None, 400, "bad_message"),
    ("GET", "/v1/jobs?limit=1&limit=2", None, 400, "bad_message"),
    ("GET", "/v1/jobs?nonsense=1", None, 400, "bad_message"),
    ("GET", "/v1/jobs/none", None, 404, "unknown_job"),
    ("GET", "/v1/jobs/NOT-AN-ID", None, 400, "bad_message"),
    ("GET", "/v1/jobs/a%2fb", None, 404, "not_found"),
    ("GET", "/v1/jobs/%00", None, 400, "bad_message"),
    ("GET", "/v1/nothing", None, 404, "not_found"),
    ("PUT", "/v1/jobs", b"{}", 405, "bad_method"),
    ("POST", "/v1/jobs", b"", 400, "bad_message"),
    ("POST", "/v1/jobs", b"\xff\xfe", 400, "bad_message"),
    ("POST", "/v1/jobs", b"[" * 100_000, 400, "bad_message"),
    ("POST", "/v1/jobs", b'{"job":NaN}', 400, "bad_message"),
    ("POST", "/v1/jobs?x=1", b"{}", 400, "bad_message"),
    ("POST", "/v1/jobs/job-1/cancel", b'{"job_id":"job-2"}', 400, "bad_message"),
    ("POST", "/v1/jobs/job-1/cancel", b"[]", 400, "bad_message"),
    ("POST", "/v1/jobs/job-1/cancel", b'{"resaon":"typo"}', 400, "bad_message"),
    ("POST", "/v1/keys", b'{"days":-1}', 400, "bad_message"),
    ("POST", "/v1/ledger/query", b" " * 1_000_001, 413, "too_large"),
    ("POST", "/v1/artifacts/chunks", b"x" * (512 * 1024 + 1), 413, "too_large"),
    ("DELETE", "/v1/keys/zzz", None, 400, "bad_message"),
    ("DELETE", "/v1/keys/000000000000", None, 403, "not_allowed"),
    ("DELETE", "/v1/keys/000000000000?as_operator=1", None, 403, "not_allowed"),
    ("GET", "/v1/keys?as_operator=true", None, 403, "not_allowed"),
    ("POST", "/v1/keys", b"{}", 403, "not_allowed"),
    ("GET", "/metrics", None, 403, "not_allowed"),
    ("GET", "/v1/wallet?address=0", None, 400, "bad_message"),
]


async def test_every_no_has_one_shape_and_a_fitting_status(central):
    mine = bearer((await central.key()).key)
    for method, path, body, status, code in BAD_REQUESTS:
        answer = await central.http.request(method, path, content=body, headers=mine)
        assert (answer.status_code, answer.json()["err_code"]) == (status, code), (method, path, answer.text)
        assert set(answer.json()) <= {"err_code", "message", "retry_after_ms"}
    word = await central.http.get("/v1/jobs?status=done", headers=mine)
    assert "'done'; expected one of funding, waiting," in word.json()["message"]
    kind = await central.http.post("/v1/jobs", content=b"{}", headers=mine | {"Content-Type": "text/xml"})
    assert (kind.status_code, kind.json()["err_code"]) == (415, "bad_content_type")
    for path in ("/v1/jobs", "/v1/artifacts/chunks"):
        packed = await central.http.post(
            path, content=gzip.compress(b"{}"), headers=mine | {"Content-Encoding": "gzip"}
        )
        assert packed.status_code == 415
        assert packed.json()["message"] == "expected a body as it is, got Content-Encoding 'gzip'"
    chunked = await central.http.post("/v1/ledger/query", content=pieces(b" " * 1_000_001), headers=mine)
    assert chunked.status_code == 413


async def pieces(body):
    yield body


async def test_a_method_that_a_path_has_not_is_told_all_that_it_has(central):
    for path, allowed in [("/v1/jobs", "GET, HEAD, POST"), ("/v1/quotes", "POST"), ("/livez", "GET, HEAD")]:
        answer = await central.http.request("PUT", path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
    assert "Allow" not in (await central.http.get("/v1/nothing")).headers


async def test_a_failure_of_ours_is_told_without_its_traceback(central, caplog):
    async def fail(caller, ask):
        raise ZeroDivisionError("secret")

    central.front._handlers["node.list"] = fail
    answer = await central.http.get("/v1/nodes", headers=bearer((await central.key()).key))
    assert (answer.status_code, answer.json()["err_code"]) == (500, "internal")
    assert "secret" not in answer.text and "ZeroDivisionError" in caplog.text


async def test_probes_and_figures(central):
    assert (await central.http.get("/livez")).json() == {"live": True}
    assert (await central.http.get("/readyz")).json() == {"ready": True}
    central.sick = "no link to the broker"
    answer = await central.http.get("/readyz")
    assert (answer.status_code, answer.json()["message"]) == (503, "no link to the broker")
    assert int(answer.headers["retry-after"]) >= 1
    assert (await central.http.get("/metrics")).status_code == 401
    key = (await central.key(OPERATOR, role="operator")).key
    central.ledger.failing = True
    text = (await central.http.get("/metrics", headers=bearer(key))).text
    assert re.search(r'^cyx_http_requests_total{method="GET",route="/readyz",status="503"} 1\.0$', text, re.M)
    assert re.search(r"^cyx_jobs_active 0\.0$", text, re.M)
    assert re.search(r"^cyx_payouts_frozen 0\.0$", text, re.M)
    assert re.search(r"^cyx_signer_failing 0\.0$", text, re.M) and re.search(r"^cyx_ledger_failing 1\.0$", text, re.M)


async def test_the_document_describes_exactly_what_is_served(central):
    document = (await central.http.get("/openapi.json")).json()
    served = {(route.method.lower(), route.path) for route in ROUTES}
    described = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert described - served == {("get", path) for path in ("/livez", "/readyz", "/openapi.json", "/metrics")}
    assert served <= described
    text = json.dumps(document)
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) == set(document["components"]["schemas"])
    for pattern in re.findall(r'"pattern": "([^"]+)"', text):
        assert "\\A" not in pattern and "\\Z" not in pattern
    operations = [each for path in document["paths"].values() for each in path.values()]
    ids = [each["operationId"] for each in operations if "operationId" in each]
    assert len(set(ids)) == len(ids)
    body = document["paths"]["/v1/jobs/{job_id}/priority"]["post"]["requestBody"]
    assert body["required"] and body["content"]["application/json"]["schema"]["required"] == ["priority"]


async def test_the_document_has_the_fields_of_what_happens_to_a_job(central):
    schemas = (await central.http.get("/openapi.json")).json()["components"]["schemas"]
    told = {each["$ref"].rsplit("/", 1)[-1] for each in schemas["Update"]["properties"]["data"]["anyOf"]}
    assert told == {kind.__name__ for kind in get_args(m.JobEvent)} | {
        "BatchMetrics",
        "EpochMetrics",
        "HardwareMetrics",
    }
    assert "node_base_units" in schemas["Settled"]["properties"]
    assert "validation_loss" in schemas["EpochMetrics"]["properties"]
    printed = subprocess.run([sys.executable, "-m", "cyxcentral.http.openapi"], capture_output=True, check=True).stdout
    assert json.loads(printed)["components"]["schemas"] == schemas


# -- events ------------------------------------------------------------------------------------------


class Reader:
    """What an EventSource makes of a stream."""

    def __init__(self, answer):
        self.lines = answer.aiter_lines()
        self.events = []

    async def next(self):
        """(id, event, data) of the next event."""
        fields = {}
        async for line in self.lines:
            if line.startswith(":"):
                continue
            if not line and "data" in fields:
                return fields["id"], fields["event"], json.loads(fields["data"])
            name, _, value = line.partition(": ")
            fields[name] = value
        return None


def sse(credential, last=None):
    headers = bearer(credential) | {"Accept": "text/event-stream"}
    return headers | ({"Last-Event-ID": last} if last else {})


async def test_updates_of_a_job_named_by_its_beginning_stream_live(broker):
    async with HttpCentral.open(broker, Limits(ping_s=60.0)) as central:
        key = (await central.key()).key
        await job(central, "job-beginning")
        async with (
            asyncio.timeout(60),
            central.http.stream("GET", "/v1/jobs/job-beg/updates", headers=sse(key)) as answer,
        ):
            reader = Reader(answer)
            assert await reader.next()
            await soon(lambda: central.recent._listeners)
            await central.small.say(subjects.job_event("job-beginning"), m.PauseRequested(caller="x"))
            assert await reader.next()


async def test_updates_stream_live_and_resume_without_gap_or_duplicate(central):
    key = (await central.key()).key
    await job(central)
    seen = []
    async with asyncio.timeout(60):
        async with central.http.stream("GET", "/v1/jobs/job-1/updates", headers=sse(key)) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            reader = Reader(answer)
            seen.append(await reader.next())
            await central.small.say(subjects.job_event("job-1"), m.PauseRequested(caller="x"))
            seen.append(await reader.next())
        await central.small.say(subjects.job_event("job-1"), m.ResumeRequested(caller="x"))
        await central.small.say(subjects.job_event("job-1"), f.FUND_FAILED)
        last = seen[-1][0]
        async with central.http.stream("GET", "/v1/jobs/job-1/updates", headers=sse(key, last)) as answer:
            reader = Reader(answer)
            while (event := await reader.next()) is not None:
                seen.append(event)
    assert [kind for _, kind, _ in seen] == ["Submitted", "PauseRequested", "ResumeRequested", "FundFailed", "end"]
    assert seen[-1][2] == {"status": "failed"}
    done = await central.http.get("/v1/jobs/job-1/updates", headers=sse(key, seen[-1][0]))
    assert done.status_code == 204
    page = (await central.http.get("/v1/jobs/job-1/updates?after_event=1", headers=bearer(key))).json()
    assert [each["kind"] for each in page["updates"]] == ["PauseRequested", "ResumeRequested", "FundFailed"]


@pytest.mark.parametrize("last", ["x", "1", "-1-2", "1-2-3", "9" * 30 + "-1"])
async def test_a_place_that_is_none_is_refused(central, last):
    await job(central)
    answer = await central.http.get("/v1/jobs/job-1/updates", headers=sse((await central.key()).key, last))
    assert answer.status_code == 400 and "Last-Event-ID" in answer.text


async def test_a_stream_ends_when_its_credential_is_revoked(broker):
    async with HttpCentral.open(broker, Limits(ping_s=0.05)) as central:
        made = await central.key()
        await job(central)
        async with asyncio.timeout(60):
            async with central.http.stream("GET", "/v1/jobs/job-1/updates", headers=sse(made.key)) as answer:
                reader = Reader(answer)
                assert await reader.next()
                await central.access.revoke(made.view.id, "")
                assert await reader.next() is None
        await soon(lambda: not central.front.streams)


async def test_the_keys_sessions_and_streams_of_a_banned_client_end(broker):
    async with HttpCentral.open(broker, Limits(ping_s=0.05)) as central:
        key, tokens = (await central.key()).key, await central.log_in()
        bobs, operator = await central.key(BOB), (await central.log_in(OPERATOR, "operator"))["access_token"]
        alice = as_client(ALICE).id
        await job(central)
        async with asyncio.timeout(60):
            async with central.http.stream("GET", "/v1/jobs/job-1/updates", headers=sse(key)) as answer:
                reader = Reader(answer)
                assert await reader.next()
                banned = await central.http.post(
                    f"/v1/clients/{alice}/ban", headers=bearer(operator), json={"reason": "floods", "for_s": 60}
                )
                assert (banned.status_code, banned.json()["bans"]) == (200, 1)
                assert await reader.next() is None
        for credential in (key, tokens["access_token"]):
            assert (await central.http.get("/v1/jobs", headers=bearer(credential))).status_code == 401
        refresh = {"refresh_token": tokens["refresh_token"]}
        assert (await central.http.post("/v1/sessions/refresh", json=refresh)).status_code == 401
        with pytest.raises(AssertionError, match="may not be client now"):
            await central.log_in()
        with pytest.raises(ApiError, match="is banned: floods"):
            await central.handlers["job.list"](alice, m.JobListRequest())  # asked over NATS a moment before
        assert (await central.http.get("/v1/jobs", headers=bearer(bobs.key))).status_code == 200
        await central.http.post(f"/v1/clients/{alice}/pardon", headers=bearer(operator), json={})
        assert (await central.http.get("/v1/jobs", headers=bearer(key))).status_code == 200


async def test_streams_of_one_caller_are_bounded_and_counted_down(central, monkeypatch):
    monkeypatch.setattr("cyxcentral.http.app.STREAMS_OF_ONE", 1)
    key = (await central.key()).key
    await job(central)
    async with central.http.stream("GET", "/v1/jobs/job-1/updates", headers=sse(key)) as answer:
        reader = Reader(answer)  # kept: with it the stream would go, as soon as that is noticed
        assert await reader.next()
        second = await central.http.get("/v1/jobs/job-1/updates", headers=sse(key))
        assert (second.status_code, second.json()["err_code"]) == (429, "too_many_streams")
    await soon(lambda: not central.front.streams)


async def test_of_streams_that_are_asked_for_at_once_no_more_pass_than_there_may_be(central, monkeypatch):
    monkeypatch.setattr("cyxcentral.http.app.STREAMS_OF_ONE", 1)
    key = (await central.key()).key
    await job(central)
    find, go_on = central.front._handlers["job.status"], asyncio.Event()
    here = asyncio.Semaphore(0)

    async def at_the_gate(caller, ask):
        here.release()
        await go_on.wait()
        return await find(caller, ask)

    monkeypatch.setitem(central.front._handlers, "job.status", at_the_gate)

    async def follow():
        async with central.http.stream("GET", "/v1/jobs/job-1/updates", headers=sse(key)) as answer:
            return answer.status_code  # and it is over

    first = asyncio.create_task(follow())
    await asyncio.wait_for(here.acquire(), 60)  # it has been let pass, and is not open yet
    assert await asyncio.wait_for(follow(), 60) == 429
    go_on.set()
    assert await asyncio.wait_for(first, 60) == 200
    await soon(lambda: not central.front.streams)


async def test_a_stream_of_a_job_that_is_none_gives_its_place_back(central):
    key = (await central.key()).key
    assert (await central.http.get("/v1/jobs/nowhere/updates", headers=sse(key))).status_code == 404
    assert central.front.streams == 0


async def test_the_end_of_the_server_ends_its_streams(broker):
    async with contextlib.AsyncExitStack() as stack:
        central = await stack.enter_async_context(HttpCentral.open(broker))
        key = (await central.key()).key
        await job(central)
        async with central.http.stream("GET", "/v1/jobs/job-1/updates", headers=sse(key)) as answer:
            reader = Reader(answer)
            assert await reader.next()
            async with asyncio.timeout(60):
                await central.front.close()
                assert await reader.next() is None


# -- abuse -------------------------------------------------------------------------------------------


async def test_an_address_that_asks_too_often_is_told_when_to_come_again(broker, monkeypatch):
    async with HttpCentral.open(broker, http_requests_per_s=1.0) as central:
        monkeypatch.setattr(central.front.gate, "_now_s", lambda: 0.0)  # however slow this machine is
        answers = [await central.http.get("/livez") for _ in range(3)]
        assert [each.status_code for each in answers[:2]] == [200, 200]
        last = answers[-1]
        assert (last.status_code, last.json()["err_code"]) == (429, "rate_limited")
        assert int(last.headers["retry-after"]) * 1000 >= last.json()["retry_after_ms"] > 0


async def test_the_addresses_of_one_ipv6_network_have_one_rate(broker, monkeypatch):
    async with HttpCentral.open(broker, http_requests_per_s=1.0) as central:
        monkeypatch.setattr(central.front.gate, "_now_s", lambda: 0.0)
        codes = []
        for host in ("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::3"):
            ends = httpx.ASGITransport(central.front, client=(host, 1))
            async with httpx.AsyncClient(transport=ends, base_url="http://x") as client:
                codes.append((await client.get("/livez")).status_code)
        assert codes == [200, 200, 429, 200]


async def test_a_proxy_may_have_all_connections_and_places(broker, monkeypatch):
    monkeypatch.setattr("cyxcentral.http.app.REQUESTS_IN_FLIGHT", 2)
    monkeypatch.setattr("cyxnet.httpserver.CONNECTIONS_OF_ONE", 1)
    async with HttpCentral.open(broker, http_behind_proxy=True) as central:
        key = (await central.key()).key
        await job(central)
        async with central.http.stream("GET", "/v1/jobs/job-1/updates", headers=sse(key)) as answer:
            reader = Reader(answer)  # kept: with it the stream would go, as soon as that is noticed
            assert await reader.next()
            assert (await central.http.get("/livez")).status_code == 200


async def test_a_large_body_counts_as_several_requests(central):
    key = bearer((await central.key()).key)
    charged = []
    central.front.gate._wait_ms = lambda identity, cost: charged.append(cost) or 0
    for sent in (b"{}", bytes(524_288)):
        await central.http.post("/v1/artifacts/chunks", content=sent, headers=key)
    assert charged == [1, 1 + 524_288 // COSTS_ONE_MORE_BYTES["api"]]


@pytest.mark.parametrize("rate", [3.0, 0.1])
async def test_a_session_is_opened_however_low_the_rate_of_an_address_is(broker, rate, monkeypatch):
    async with HttpCentral.open(broker, http_requests_per_s=rate) as central:
        loop = asyncio.get_running_loop()
        passed_s, real = itertools.count(0.0, 20.0), loop.time
        monkeypatch.setattr(central.front.gate, "_now_s", lambda: real() + next(passed_s))
        assert (await central.log_in())["access_token"]


async def test_one_address_does_not_take_all_places(broker, monkeypatch):
    monkeypatch.setattr("cyxcentral.http.app.REQUESTS_IN_FLIGHT", 2)
    async with HttpCentral.open(broker) as central:
        key = (await central.key()).key
        await job(central)
        async with central.http.stream("GET", "/v1/jobs/job-1/updates", headers=sse(key)) as answer:
            reader = Reader(answer)  # kept: with it the stream would go, as soon as that is noticed
            assert await reader.next()
            busy = await central.http.get("/livez")
            assert (busy.status_code, busy.json()["err_code"]) == (429, "busy")
        await soon(lambda: not central.front._places.total)
        assert (await central.http.get("/livez")).status_code == 200


async def test_a_key_has_a_rate_of_its_own(central):
    slow, quick = [bearer((await central.key(requests_per_s=rate)).key) for rate in (0.01, 0.0)]
    codes = [(await central.http.get("/v1/jobs", headers=slow)).status_code for _ in range(2)]
    assert codes == [200, 429]
    assert (await central.http.get("/v1/jobs", headers=quick)).status_code == 200


@pytest.mark.parametrize("rate", [1e-320, 0.0009])
async def test_a_key_with_a_rate_of_next_to_nothing_is_not_made(central, rate):
    session = bearer((await central.log_in())["access_token"])
    answer = await central.http.post("/v1/keys", json={"requests_per_s": rate}, headers=session)
    assert answer.status_code == 400 and "expected requests_per_s 0 or from 0.001 on" in answer.text


async def test_a_caller_has_one_rate_for_nats_and_http(broker):
    async with HttpCentral.open(broker, requests_per_s=0.01) as central:
        key = bearer((await central.key()).key)
        assert (await central.http.get("/v1/jobs", headers=key)).status_code == 200
        assert central.over_limit_ms(as_client(ALICE).id) > 0
        assert (await central.http.get("/v1/jobs", headers=key)).status_code == 429


async def test_identities_that_nobody_knows_are_limited_by_the_address_they_come_from(central):
    async def come(keys, address):
        ask = session_request(keys, NETWORK_ID, central.tokens.nonce())
        return await central.front.gate.open_session(address, ask)

    keys = [Identity(number.to_bytes(32, "big")) for number in range(1, int(NEWCOMERS_AT_ONCE) + 2)]
    for each in keys[:-1]:
        await come(each, "203.0.113.9")
    with pytest.raises(ApiError) as refused:
        await come(keys[-1], "203.0.113.9")
    assert (refused.value.code, refused.value.status) == ("too_many_newcomers", 429)
    await come(keys[0], "203.0.113.9")  # who is known already is not counted
    await come(keys[-1], "203.0.113.10")


async def test_opening_a_session_counts_as_a_request_of_the_identity(broker):
    async with HttpCentral.open(broker, requests_per_s=0.01) as central:
        await central.log_in(BOB)
        assert central.over_limit_ms(as_client(ALICE).id) == 0
        with pytest.raises(AssertionError, match="rate_limited"):
            await central.log_in(ALICE)


async def test_methods_that_nothing_has_are_counted_as_one(central):
    for method in ("PROPFIND", "SEARCH", "LOCK", "REPORT"):
        assert (await central.http.request(method, "/livez")).status_code == 405
    assert (await central.http.request("MADEUP", "/livez")).status_code == 400
    counted = central.front.figures.text().decode().splitlines()
    methods = {
        line.split('method="')[1].split('"')[0] for line in counted if line.startswith("cyx_http_requests_total")
    }
    assert methods == {"other"}


async def test_pages_of_other_origins_are_told_nothing_unless_they_are_named(broker):
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    async with HttpCentral.open(broker) as central:
        answer = await central.http.options("/v1/jobs", headers=asked)
        assert not any(name.startswith("access-control") for name in answer.headers)
    async with HttpCentral.open(broker, http_origins=["https://good.example"]) as central:
        assert "access-control-allow-origin" not in (await central.http.options("/v1/jobs", headers=asked)).headers
        good = asked | {"Origin": "https://good.example"}
        answer = await central.http.options("/v1/jobs", headers=good)
        assert answer.headers["access-control-allow-origin"] == "https://good.example"


async def test_pages_may_read_why_they_are_refused(broker, monkeypatch):
    origin = {"Origin": "https://good.example"}
    async with HttpCentral.open(broker, http_origins=["https://good.example"], http_requests_per_s=1.0) as central:
        monkeypatch.setattr(central.front.gate, "_now_s", lambda: 0.0)
        broken = await central.http.get("/v1/jobs", headers=origin | bearer("cyxk_none"))
        for _ in range(3):
            too_often = await central.http.get("/v1/nowhere", headers=origin)
        for answer, status in ((broken, 401), (too_often, 429)):
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://good.example"
        assert "retry-after" in too_often.headers["access-control-expose-headers"].lower()
        other = await central.http.get("/v1/jobs", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
