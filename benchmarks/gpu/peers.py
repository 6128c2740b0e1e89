"""torch's ways to run the same step: eager with a fused optimiser, recorded as a CUDA graph, and torch.compile."""

import importlib
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.models import Workload, data, module


def load_torch() -> Any:
    """The module, or None where it is missing or sees no device."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def set_precision(torch: Any, precision: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def _parts(torch: Any, load: Workload) -> tuple[Any, Any, Callable[[Any], Any]]:
    torch.manual_seed(1)
    net = module(load, torch.nn).cuda()
    inputs, labels = data(load)
    x, y = torch.from_numpy(inputs).cuda(), torch.from_numpy(labels.reshape(-1)).cuda()
    spec = load.optimizer
    kind: Any = {
        "adam": lambda p: torch.optim.Adam(p, lr=spec.learning_rate, fused=True, capturable=True),
        "adamw": lambda p: torch.optim.AdamW(
            p, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True, capturable=True
        ),
        "sgd": lambda p: torch.optim.SGD(p, lr=spec.learning_rate, momentum=spec.momentum, fused=True),
    }[spec.name]

    def loss_of(model: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x).reshape(-1, load.classes), y)

    return net, kind(list(net.parameters())), loss_of


def eager(torch: Any, load: Workload) -> Callable[[], Any]:
    net, optimizer, loss_of = _parts(torch, load)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(net)
        loss.backward()
        optimizer.step()
        return loss

    return step


def graphed(torch: Any, load: Workload) -> Callable[[], Any]:
    """The eager step recorded once and replayed."""
    step = eager(torch, load)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(keep: Any = step) -> None:  # a graph knows addresses only
        graph.replay()

    return replay


def compiled(torch: Any, load: Workload) -> Callable[[], Any]:
    """torch.compile of model and loss with CUDA graphs (mode reduce-overhead); the optimiser is the fused one."""
    torch._dynamo.reset()  # a few models and two precisions are more versions than it keeps of one function
    net, optimizer, loss_of = _parts(torch, load)
    faster = torch.compile(lambda: loss_of(net), mode="reduce-overhead")

    def step() -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad(set_to_none=True)
        loss = faster()
        loss.backward()
        optimizer.step()
        return loss

    return step


PEERS: dict[str, Callable[[Any, Workload], Callable[[], Any]]] = {
    "torch eager": eager,
    "torch graph": graphed,
    "torch.compile": compiled,
}
