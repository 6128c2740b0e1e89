"""Small models for the tests of serving, and a server of one: the real application on a free port."""

import contextlib
import threading

import httpx
import numpy as np

import cyxcore as cx
from cyxcore import nn
from cyxcore.model import Facts, Model
from cyxcore.tracing import trace
from cyxnet.httpserver import Server
from cyxnode.serving.app import Front
from cyxnode.serving.batcher import Batcher
from cyxnode.serving.gate import Gate
from cyxnode.serving.predictor import Predictor
from cyxnode.serving.tensors import TensorModel

CLASSES = ["zero", "one", "two"]


def mlp():
    cx.manual_seed(1) if hasattr(cx, "manual_seed") else None
    return model(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (4,), classes=CLASSES)


def model(module, shape, dtype="float32", classes=None):
    traced = trace(module, shape, dtype)
    return Model(traced.graph, traced.weights, Facts(classes=classes))


def samples(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)


class Halting(Predictor):
    """A predictor whose runs wait, in the batcher's thread, until they may go on; it notes the sizes of its runs."""

    def __init__(self, *args, **options):
        self.go_on = threading.Event()
        self.go_on.set()
        self.sizes = []
        super().__init__(*args, **options)
        self.run_ns = dict.fromkeys(self.run_ns, 1e9)  # long enough for the thread, and equal: fullest runs win

    def run(self, size):
        self.sizes.append(size)
        assert self.go_on.wait(60)
        return super().run(size)


@contextlib.asynccontextmanager
async def serving(served, keys=(), limits=None, **options):
    """(a client of a server that answers with `served`, the server)."""
    await served.start()
    front = Front(served, Gate(list(keys)), limits)
    server = await Server.start(front, "127.0.0.1", 0, **options)
    server.front = front
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            yield http, server
    finally:
        await server.close()
        await served.close()


def tensors(held=None, kind=Predictor, max_batch=8, max_wait_s=0.0, max_queue=64):
    held = held or mlp()
    predictor = kind(held.graph, held.weights, max_batch)
    return TensorModel("small", held, predictor, Batcher(predictor, max_wait_s, max_queue))
