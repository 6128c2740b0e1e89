"""A model of tensors as it is served: /v1/predict, and /v1/embeddings where its answers are vectors."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from cyxcore import device as devices
from cyxcore.model import Model
from cyxnet.codec import JSON
from cyxnet.inference import NPY, ModelCard, PredictReply, PredictRequest, TensorCard
from cyxnet.openai import EmbeddingsRequest
from cyxnet.outcomes import ApiError
from cyxnode.serving import openai
from cyxnode.serving.asgi import Answer, Asked, IsGone, Refused, Tell, as_json, bad
from cyxnode.serving.batcher import Batcher
from cyxnode.serving.bodies import NOTHING_ELSE, Lists, read_npy, write_npy
from cyxnode.serving.figures import Figure
from cyxnode.serving.predictor import Predictor

Array = np.ndarray[Any, Any]
_REQUEST = msgspec.json.Decoder(PredictRequest)
_IN_JSON = msgspec.json.Encoder().encode
_NPY = NPY.encode()


class TensorModel:
    """What answers about one Model. Its methods are named as in routes.py."""

    kind = "tensors"

    def __init__(self, name: str, model: Model, predictor: Predictor, batcher: Batcher):
        self.name = name
        self._model, self._predictor, self.batcher = model, predictor, batcher
        self._lists = Lists(model.graph.input_shape, predictor.input_dtype)

    async def start(self) -> None:
        """Its thread begins with the first sample."""

    async def close(self) -> None:
        self.batcher.close()

    def figures(self) -> list[Figure]:
        batcher = self.batcher
        return [
            Figure("cyx_serve_samples_waiting", "Samples that no run has taken.", "gauge", lambda: batcher.queued),
            Figure("cyx_serve_samples", "Samples answered.", "counter", lambda: batcher.samples),
            Figure("cyx_serve_runs", "Runs, each of one or more samples.", "counter", lambda: batcher.runs),
        ]

    def early(self) -> dict[str, Callable[[], ApiError | None]]:
        return dict.fromkeys(("/v1/predict", "/v1/embeddings"), self.batcher.refusal)

    def card(self) -> ModelCard:
        graph, predictor = self._model.graph, self._predictor
        output = predictor.outputs(0)
        return ModelCard(
            name=self.name,
            kind=self.kind,
            parameters=sum(int(np.prod(param.shape)) for param in graph.parameters),
            weights_bytes=predictor.weights_bytes,
            numerics=devices.NUMERICS[devices.default_device()],
            input=TensorCard(shape=list(graph.input_shape), dtype=predictor.input_dtype.name),
            output=TensorCard(shape=list(output.shape[1:]), dtype=output.dtype.name),
            classes=self._model.classes,
            feature_names=self._model.facts.feature_names,
            graph_sha256=graph.sha256,
            rows_independent=predictor.rows_independent,
            max_batch=predictor.max_batch,
        )

    async def predict(self, asked: Asked) -> Answer:
        self.batcher.refuse_when_full()
        body = await asked.body()
        told: asyncio.Future[Answer | Exception] = asyncio.get_running_loop().create_future()

        def tell(found: Answer | Exception) -> None:
            if not told.done():  # who asked may be gone
                told.set_result(found)

        accept = asked.headers.get(b"accept", b"")
        self.begin_predict(asked.content_type(), accept, body, tell, lambda: told.done() or asked.is_gone())
        found = await told
        if isinstance(found, Exception):
            raise found
        return found

    def begin_predict(self, content_type: str, accept: bytes, body: bytes, tell: Tell, is_gone: IsGone) -> None:
        """predict(), of whom tell() is told: see asgi.Begin."""
        begun_s = time.perf_counter()
        self.batcher.refuse_when_full()
        rows, several, classes = self._samples(content_type, body)
        npy = _NPY in accept

        def told(found: Array | Exception) -> None:
            answer: Answer | Exception
            try:
                answer = found if isinstance(found, Exception) else self._answer(found, several, classes, npy, begun_s)
            except Exception as error:
                answer = error
            tell(answer)

        self.batcher.ask(rows, told, is_gone)

    def _samples(self, content_type: str, body: bytes) -> tuple[Array, bool, bool]:
        """Of a request: its samples, whether they are a list of such, and whether their classes are wanted."""
        if content_type == NPY:
            return *self._lists.check(read_npy(body)), False
        if content_type != JSON:
            raise ApiError("bad_content_type", f"expected Content-Type {JSON} or {NPY}, got {content_type[:80]!r}", 415)
        if first := self._lists.read_first_field(body):
            rows, several, rest = first
            if rest is NOTHING_ELSE:
                return rows, several, False
            with contextlib.suppress(Refused):  # which would name places of another text; below it names its own
                request = self._decoded(rest)
                if bytes(request.input) == b"null":  # else `input` was there twice
                    return rows, several, request.classes
        request = self._decoded(body)
        return *self._lists.read(request.input), request.classes

    def _answer(self, found: Array, several: bool, classes: bool, npy: bool, begun_s: float) -> Answer:
        output = found if several else found[0]
        if npy:
            return Answer(write_npy(output), content_type=_NPY)
        reply = PredictReply(
            output=output.tolist(),
            shape=list(output.shape),
            latency_ms=round((time.perf_counter() - begun_s) * 1000, 3),
            model=self.name,
            classes=self._classes(found) if classes else None,
        )
        body = _IN_JSON(reply)
        if b"null" in body and not np.isfinite(output).all():  # what msgspec writes for such a number
            raise Refused(
                "not_finite", f"an output is no finite number, which JSON has not; ask with Accept: {NPY}", 422
            )
        return Answer(body)

    async def embeddings(self, asked: Asked) -> Answer:
        """What the model answers as the embedding of its input: numbers, as many as a sample has; no text."""
        request = openai.decoded(EmbeddingsRequest, await asked.body())
        openai.refuse_other_model(request.model, self.name)
        given = openai.prompts(request.input, "input")
        size, width = self._model.graph.input_shape, self._predictor.outputs(0).shape[1:]
        if len(size) != 1 or len(width) != 1:
            raise Refused("not_supported", f"{self.name} turns {size} into {width}, which is no embedding", 404)
        if any(isinstance(each, str) for each in given):
            raise bad(f"input: expected {size[0]} numbers, or lists of them: this model reads no text", "input")
        rows, _ = self._lists.read(msgspec.json.encode(given))
        return as_json(openai.embedding_list(request, await self.batcher.predict(rows, asked.is_gone), rows.size))

    def _decoded(self, body: bytes) -> PredictRequest:
        try:
            request = _REQUEST.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise openai.undecoded(error, body) from None
        if request.model and request.model != self.name:
            raise Refused("model_not_found", f"expected the model {self.name!r}, got {request.model!r}", 404, "model")
        return request

    def _classes(self, found: Array) -> list[str]:
        names = self._model.classes
        if names is None or found.ndim != 2:
            raise bad("classes: the model holds no class names", "classes")
        return [names[place] for place in found.argmax(-1)]
