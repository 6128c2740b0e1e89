"""A served model of tensors as its callers meet it: a real server, over real sockets."""

import asyncio
import gzip
import io
import json
import socket
import stat

import numpy as np
import pytest

from cyxcore import nn
from cyxcore.errors import SpecError
from cyxnet.inference import NPY
from cyxnode.serving.asgi import Limits
from cyxnode.serving.gate import read_keys
from cyxnode.serving.routes import ROUTES
from tests.node.serving.models import CLASSES, Halting, mlp, model, samples, serving, tensors


@pytest.fixture
async def http():
    async with serving(tensors()) as (http, _):
        yield http


@pytest.fixture(scope="module")
def held():
    return mlp()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("rows", [1, 5, 20])
async def test_json_answers_have_the_bits_of_the_model(rows):
    held = mlp()
    x = samples(rows)
    async with serving(tensors(held)) as (http, _):
        reply = (await http.post("/v1/predict", json={"input": x.tolist()})).json()
        one = (await http.post("/v1/predict", json={"input": x[0].tolist(), "classes": True})).json()
    assert np.array(reply["output"], np.float32).tobytes() == held.predict(x).tobytes()
    assert reply["shape"] == [rows, 3] and reply["model"] == "small" and reply["latency_ms"] > 0
    assert np.array(one["output"], np.float32).tobytes() == held.predict(x[:1]).tobytes()
    assert one["shape"] == [3] and one["classes"] == held.predict_classes(x[:1])


async def test_npy_bodies_go_in_and_out():
    held, x = mlp(), samples(5)
    async with serving(tensors(held)) as (http, _):
        for array, wanted in ((x, held.predict(x)), (x[0], held.predict(x[:1])[0]), (x.astype(">f8"), held.predict(x))):
            headers = {"Content-Type": NPY, "Accept": NPY}
            answer = await http.post("/v1/predict", content=npy(array), headers=headers)
            assert answer.headers["content-type"] == NPY
            assert np.load(io.BytesIO(answer.content)).tobytes() == wanted.tobytes()
        answer = await http.post("/v1/predict", content=npy(x), headers={"Content-Type": NPY})
        assert np.array(answer.json()["output"], np.float32).tobytes() == held.predict(x).tobytes()


async def test_many_callers_at_once_each_get_their_own_answer():
    held, x = mlp(), samples(64)
    async with serving(tensors(held)) as (http, _):
        asked = [http.post("/v1/predict", json={"input": row.tolist()}) for row in x]
        found = [answer.json()["output"] for answer in await asyncio.gather(*asked)]
    assert np.array(found, np.float32).tobytes() == held.predict(x).tobytes()


async def test_who_does_not_read_is_hung_up_on(caplog):
    wide = model(nn.Linear(4, 20_000), (4,))
    async with serving(tensors(wide, max_batch=64), limits=Limits(send_s=0.2)) as (http, server):
        _, port = server.url.rsplit(":", 1)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", int(port)))
            body = json.dumps({"input": [[1, 2, 3, 4]] * 64}).encode()
            slow.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            while not any(status == 200 for _, status in server.front.figures.answers):
                await asyncio.sleep(0)
        assert (await http.get("/livez")).status_code == 200
        assert not caplog.records


async def test_nested_samples_and_whole_numbers():
    held = model(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (1, 3, 4))
    x = np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4)
    async with serving(tensors(held)) as (http, _):
        reply = (await http.post("/v1/predict", json={"input": x.astype(int).tolist()})).json()
        assert np.array(reply["output"], np.float32).tobytes() == held.predict(x).tobytes()
        assert (await http.post("/v1/predict", json={"input": x[0].tolist()})).json()["shape"] == [2]


JSON_TYPE = {"Content-Type": "application/json"}
WRONG = {
    "no JSON": (b"{", JSON_TYPE, 400, "bad_message"),
    "no object": (b"[1,2,3,4]", JSON_TYPE, 400, "bad_message"),
    "no input": (b"{}", JSON_TYPE, 400, "bad_message"),
    "an unknown field": (b'{"input":[1,2,3,4],"inputs":1}', JSON_TYPE, 400, "bad_message"),
    "taken back behind it": (b'{"input":[1,2,3,4],"input":null}', JSON_TYPE, 400, "bad_message"),
    "too few numbers": (b'{"input":[1,2,3]}', JSON_TYPE, 400, "bad_message"),
    "ragged": (b'{"input":[[1,2,3,4],[1,2,3]]}', JSON_TYPE, 400, "bad_message"),
    "too deep": (b'{"input":[[[1,2,3,4]]]}', JSON_TYPE, 400, "bad_message"),
    "deeper than anybody": (b'{"input":' + b"[" * 100_000 + b"}", JSON_TYPE, 400, "bad_message"),
    "text": (b'{"input":"1,2,3,4"}', JSON_TYPE, 400, "bad_message"),
    "text within": (b'{"input":[1,2,3,"4"]}', JSON_TYPE, 400, "bad_message"),
    "booleans": (b'{"input":[1,2,3,true]}', JSON_TYPE, 400, "bad_message"),
    "no number": (b'{"input":[1,2,3,NaN]}', JSON_TYPE, 400, "bad_message"),
    "too large for float32": (b'{"input":[1,2,3,1e300]}', JSON_TYPE, 400, "bad_message"),
    "another model": (b'{"input":[1,2,3,4],"model":"big"}', JSON_TYPE, 404, "model_not_found"),
    "too many samples": (json.dumps({"input": [[1, 2, 3, 4]] * 65}).encode(), JSON_TYPE, 413, "too_large"),
    "a form": (b"input=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "bad_content_type"),
    "packed": (
        gzip.compress(b'{"input":[1,2,3,4]}'),
        JSON_TYPE | {"Content-Encoding": "gzip"},
        415,
        "bad_content_type",
    ),
    "said to be packed": (b'{"input":[1,2,3,4]}', JSON_TYPE | {"Content-Encoding": "BR"}, 415, "bad_content_type"),
    "no NPY": (b"\x93NUMPY", {"Content-Type": NPY}, 400, "bad_message"),
    "a cut NPY": (npy(samples(2))[:-1], {"Content-Type": NPY}, 400, "bad_message"),
    "an NPY of objects": (
        npy(samples(1)).replace(b"'<f4'", b"'|O' "),
        {"Content-Type": NPY},
        400,
        "bad_message",
    ),
    "NaN in NPY": (npy(np.full(4, np.nan, np.float32)), {"Content-Type": NPY}, 400, "bad_message"),
    "complex numbers": (npy(np.zeros(4, np.complex64)), {"Content-Type": NPY}, 400, "bad_message"),
    "another shape in NPY": (npy(np.zeros((2, 3), np.float32)), {"Content-Type": NPY}, 400, "bad_message"),
}


async def test_numbers_are_read_once_also_where_something_stands_behind_them(monkeypatch):
    # bytes never equal a msgspec.Raw: who asked for classes had his numbers read again, as objects
    served = tensors()
    async with serving(served) as (http, _):
        monkeypatch.setattr(served._lists, "read", None)
        answer = await http.post("/v1/predict", content=b'{"input":[1,2,3,4],"classes":true,"model":"small"}')
        assert answer.status_code == 200 and len(answer.json()["classes"]) == 1


@pytest.mark.parametrize("name", WRONG)
async def test_bad_input_is_one_clear_refusal(http, name):
    body, headers, status, code = WRONG[name]
    answer = await http.post("/v1/predict", content=body, headers=headers)
    said = answer.json()["error"]
    assert (answer.status_code, said["code"]) == (status, code), said
    assert said["message"] and said["type"]
    assert (await http.post("/v1/predict", json={"input": [1, 2, 3, 4]})).status_code == 200


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (b'{"inputs":[1,2,3,4]}', "inputs", "inputs: there is no such option here"),
        (b'{"input":[1,2,3,4],"clases":true}', "clases", "clases: there is no such option here"),
        (b'{"classes":true}', "input", "Object missing required field `input`"),
        (b" ", None, "expected a JSON object, got an empty body"),
    ],
)
async def test_what_is_wrong_with_a_request_names_the_field(http, body, param, said):
    answer = await http.post("/v1/predict", content=body, headers=JSON_TYPE)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param) and said in error["message"]


@pytest.mark.parametrize("model", [b"", b',"model":7'])
async def test_who_names_no_model_is_told_where_its_name_stands(http, model):
    answer = await http.post("/v1/embeddings", content=b'{"input":[1,2,3,4]%b}' % model, headers=JSON_TYPE)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "model")
    assert "`model`" in error["message"] or "$.model" in error["message"]
    assert error["message"].endswith("; GET /v1/models names the one that is served")


async def test_paths_and_methods_that_are_not_there(http):
    asked = [("GET", "/", 404, None), ("GET", "/v1/predict", 405, "POST"), ("DELETE", "/v1/model", 405, "GET")]
    for method, path, status, allowed in asked:
        answer = await http.request(method, path)
        assert (answer.status_code, answer.headers.get("Allow")) == (status, allowed)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_what_is_served_and_how_it_is(http):
    card = (await http.get("/v1/model")).json()
    assert card["input"] == {"shape": [4], "dtype": "float32"} and card["output"]["shape"] == [3]
    assert card["classes"] == CLASSES and card["rows_independent"] is True and card["max_batch"] == 8
    assert card["numerics"] == "cyx-exact/1" and len(card["graph_sha256"]) == 64
    assert (await http.get("/livez")).json() == {"live": True}
    assert (await http.get("/readyz")).json() == {"ready": True}
    health = (await http.get("/health")).json()
    assert health["status"] == "ok" and health["model"] == "small" and health["requests"] >= 3
    text = (await http.get("/metrics")).text
    assert 'cyx_serve_requests_total{route="/v1/model",status="200"} 1.0' in text
    assert "cyx_serve_samples_waiting 0.0" in text and "cyx_serve_runs_total 0.0" in text
    assert 'cyx_serve_request_seconds_count{route="/v1/model"} 1.0' in text


async def test_the_document_has_every_path_and_every_schema(http):
    document = (await http.get("/openapi.json")).json()
    assert {(route.method.lower(), route.path) for route in ROUTES} == {
        (method, path) for path, methods in document["paths"].items() for method in methods
    }
    named = set(json.dumps(document).split('"#/components/schemas/')[1:])
    assert {name.split('"')[0] for name in named} == set(document["components"]["schemas"])


async def test_with_keys_nobody_else_is_answered(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# who may ask\nsecret-of-sixteen alice\nanother-of-sixteen bob 60\n")
    file.chmod(0o600)
    async with serving(tensors(), read_keys(file)) as (http, _):
        assert (await http.get("/livez")).status_code == 200
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret-of-sixteen"}):
            answer = await http.get("/v1/model", headers=header)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == 'Bearer realm="cyx"'
        good = {"Authorization": "Bearer secret-of-sixteen"}
        assert [(await http.get("/v1/model", headers=good)).status_code for _ in range(20)] == [200] * 20
        counted = 'cyx_serve_key_requests_total{name="alice",prefix="secret-o"} 21.0'
        assert counted in (await http.get("/metrics", headers=good)).text
        slow = {"Authorization": "Bearer another-of-sixteen"}
        answers = [await http.get("/v1/model", headers=slow) for _ in range(30)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused and refused[0].json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused[0].headers["retry-after"]) >= 1 and int(refused[0].headers["retry-after-ms"]) > 0


KEY_FILES = {
    "none": ("# nothing\n", 0o600, "expected at least one API key"),
    "short": ("abc\n", 0o600, "line 1: expected a key of 16 to 512 letters, got 3"),
    "a rate in words": ("secret-of-sixteen alice often\n", 0o600, r"line 1: expected KEY \[NAME"),
    "twice": ("secret-of-sixteen\nsecret-of-sixteen\n", 0o600, "the same API key is there twice"),
    "open to others": ("secret-of-sixteen\n", 0o644, "chmod 600"),
}


@pytest.mark.parametrize("name", KEY_FILES)
def test_a_file_of_keys_that_is_none(tmp_path, name):
    text, mode, said = KEY_FILES[name]
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(mode)
    assert stat.S_IMODE(file.stat().st_mode) == mode
    with pytest.raises(SpecError, match=said):
        read_keys(file)


def test_a_file_of_keys_that_an_editor_has_marked_has_the_same_keys(tmp_path):
    digests = []
    for mark in (b"", b"\xef\xbb\xbf"):
        file = tmp_path / "keys"
        file.write_bytes(mark + b"secret-of-sixteen alice\r\n")
        file.chmod(0o600)
        digests += [(key.sha256, key.prefix, key.name) for key in read_keys(file)]
    assert digests == [digests[0]] * 2  # the mark was a letter of the first key, which nobody could send


async def test_a_body_that_is_too_large_is_refused_unread():
    async with serving(tensors(), limits=Limits(body_bytes=1000)) as (http, _):

        async def pieces():
            for _ in range(20):
                yield b" " * 100

        for body in (b" " * 1001, pieces()):
            answer = await http.post("/v1/predict", content=body, headers=JSON_TYPE)
            assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_large"


async def test_the_bodies_in_memory_are_bounded_together():
    served = tensors(kind=Halting)
    predictor = served._predictor
    async with serving(served, limits=Limits(bodies_bytes=100)) as (http, _):
        predictor.sizes.clear()
        predictor.go_on.clear()
        first = asyncio.create_task(http.post("/v1/predict", content=b'{"input":[1,2,3,4]}' + b" " * 60))
        while not predictor.sizes:
            await asyncio.sleep(0)
        answer = await http.post("/v1/predict", content=b'{"input":[1,2,3,4]}' + b" " * 60)
        assert answer.status_code == 429 and answer.json()["error"]["code"] == "overloaded"
        predictor.go_on.set()
        assert (await first).status_code == 200
        assert (await http.post("/v1/predict", content=b'{"input":[1,2,3,4]}')).status_code == 200


async def test_a_full_queue_is_429_and_the_rest_is_answered():
    served = tensors(kind=Halting, max_batch=2, max_queue=4)
    predictor = served._predictor
    async with serving(served) as (http, server):
        predictor.sizes.clear()
        predictor.go_on.clear()
        asked = [asyncio.create_task(http.post("/v1/predict", json={"input": [1, 2, 3, 4]})) for _ in range(12)]
        while server.front.figures.requests < 5:
            await asyncio.sleep(0)
        predictor.go_on.set()
        statuses = sorted(answer.status_code for answer in await asyncio.gather(*asked))
        assert set(statuses) == {200, 429} and 4 <= statuses.count(200) <= 7
        refused = [task.result() for task in asked if task.result().status_code == 429]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)


async def test_who_hangs_up_is_not_computed_for(caplog):
    served = tensors(kind=Halting, max_batch=1)
    predictor = served._predictor
    async with serving(served) as (http, server):
        predictor.sizes.clear()
        predictor.go_on.clear()
        asked = [asyncio.create_task(http.post("/v1/predict", json={"input": [1, 2, 3, 4]})) for _ in range(3)]
        while not predictor.sizes or served.batcher.queued < 2:  # the first is computed, and the others wait
            await asyncio.sleep(0)
        for task in asked:
            task.cancel()
        await asyncio.wait(asked)
        while server.guests.total:
            await asyncio.sleep(0)
        predictor.go_on.set()
        assert (await http.post("/v1/predict", json={"input": [1, 2, 3, 4]})).status_code == 200
        assert predictor.sizes == [1, 1] and not caplog.records


async def test_a_server_that_stops_answers_what_it_took_and_nothing_else():
    served = tensors(kind=Halting)
    predictor = served._predictor
    async with serving(served) as (http, server):
        predictor.sizes.clear()
        predictor.go_on.clear()
        under_way = asyncio.create_task(http.post("/v1/predict", json={"input": [1, 2, 3, 4]}))
        while not predictor.sizes:
            await asyncio.sleep(0)
        await server.front.close()
        answer = await http.get("/readyz")
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert (await http.post("/v1/predict", json={"input": [1, 2, 3, 4]})).json()["error"]["code"] == "stopping"
        closing = asyncio.create_task(server.close())
        predictor.go_on.set()
        assert (await under_way).status_code == 200
        await closing
