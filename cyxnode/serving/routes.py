"""What a served model answers, at which path: what is served, documented and tested is this table. Pure data."""

from typing import Any

from msgspec import Struct

from cyxnet import inference as i


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
]
