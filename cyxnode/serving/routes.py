"""What a served model answers, at which path: what is served, documented and tested is this table. Pure data."""

from typing import Any

from msgspec import Struct

from cyxnet import inference as i
from cyxnet import openai as o


class Route(Struct, frozen=True):
    """One path. name: of the method that answers it; is_open: whether it is answered without a key."""

    method: str
    path: str
    name: str
    about: str
    request: Any = None
    reply: Any = None
    is_open: bool = False
    also: tuple[str, ...] = ()  # other content types of request and reply
    streams: bool = False


ROUTES = [
    Route("GET", "/health", "health", "how the server is", reply=i.Health, is_open=True),
    Route("GET", "/livez", "livez", "the process serves", is_open=True),
    Route("GET", "/readyz", "readyz", "new requests are taken; 503 while it stops", is_open=True),
    Route("GET", "/openapi.json", "openapi", "this document", is_open=True),
    Route("GET", "/metrics", "metrics", "figures for Prometheus"),
    Route("GET", "/v1/model", "model", "what is served", reply=i.ModelCard),
    Route("POST", "/v1/predict", "predict", "the outputs for samples", i.PredictRequest, i.PredictReply, also=(i.NPY,)),
    Route("GET", "/v1/models", "models", "the one model there is", reply=o.ModelList),
    Route("GET", "/v1/models/{model}", "one_model", "that model", reply=o.ModelObject),
    Route("POST", "/v1/chat/completions", "chat", "the next message", o.ChatRequest, o.ChatCompletion, streams=True),
    Route(
        "POST", "/v1/completions", "completions", "how a text goes on", o.CompletionRequest, o.Completion, streams=True
    ),
    Route("POST", "/v1/embeddings", "embeddings", "a vector for each input", o.EmbeddingsRequest, o.EmbeddingList),
]
