"""The same model behind onnxruntime and a web framework, as its documentation has it.

    python -m benchmarks.serving.peers fastapi|litestar MODEL.onnx PORT

One process, one thread for the model, uvloop and httptools, and the request is checked as each framework checks it.
"""

import sys
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import uvicorn


def session(path: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answers(path: str) -> Any:
    """list -> list, as the handlers use it."""
    held = session(path)
    name = held.get_inputs()[0].name

    def answer(given: list[Any]) -> list[Any]:
        found: list[Any] = held.run(None, {name: np.array([given], np.float32)})[0][0].tolist()
        return found

    return answer


def nested(depth: int) -> Any:
    kind: Any = float
    for _ in range(depth):
        kind = list[kind]
    return kind


def fastapi(path: str) -> Any:
    import pydantic
    from fastapi import FastAPI

    kind = nested(len(session(path).get_inputs()[0].shape) - 1)
    asked = pydantic.create_model("Asked", input=(kind, ...))
    replied = pydantic.create_model("Replied", output=(list[float], ...))
    app, answer = FastAPI(), answers(path)

    async def predict(request: asked) -> replied:  # type: ignore[valid-type]
        return replied(output=answer(request.input))  # type: ignore[attr-defined]

    app.post("/v1/predict")(predict)
    return app


def litestar(path: str) -> Any:
    from litestar import Litestar, post

    kind = nested(len(session(path).get_inputs()[0].shape) - 1)
    asked = msgspec.defstruct("Asked", [("input", kind)])
    replied = msgspec.defstruct("Replied", [("output", list[float])])
    answer = answers(path)

    async def predict(data: Any) -> Any:
        return replied(output=answer(data.input))

    predict.__annotations__ = {"data": asked, "return": replied}
    return Litestar([post("/v1/predict", status_code=200)(predict)], openapi_config=None)


PEERS = {"fastapi": fastapi, "litestar": litestar}

if __name__ == "__main__":
    app = PEERS[sys.argv[1]](sys.argv[2])
    uvicorn.run(app, port=int(sys.argv[3]), loop="uvloop", http="httptools", log_level="error", access_log=False)
