"""Small things beside a model: what it costs, what it is made of, and what PyTorch keeps in torch.utils."""

from collections.abc import Callable
from typing import Any

from cyxcore import data as data
from cyxcore import torchpaths
from cyxcore.autograd import remat
from cyxcore.errors import SpecError
from cyxcore.overview import Summary as Summary
from cyxcore.overview import flops as flops
from cyxcore.overview import summary as summary

__path__: list[str] = []  # cyxcore.utils.data: cyxcore/torchpaths.py
__getattr__ = torchpaths.below("utils")


class checkpoint:  # noqa: N801 - PyTorch's module torch.utils.checkpoint
    """Blocks that are computed again in the backward pass instead of remembered: cx.remat by PyTorch's names."""

    @staticmethod
    def checkpoint(
        function: Callable[..., Any],
        *args: Any,
        use_reentrant: bool = False,
        preserve_rng_state: bool = True,
        **options: Any,
    ) -> Any:
        """function(*args, **options), remembering only its arguments.

        use_reentrant, preserve_rng_state: accepted and without effect: what was drawn is drawn again.
        """
        return remat(lambda *given: function(*given, **options), *args)

    @staticmethod
    def checkpoint_sequential(
        functions: Any, segments: int, input: Any, use_reentrant: bool = False, preserve_rng_state: bool = True
    ) -> Any:
        """The modules of a Sequential (or a list) one after another, in so many segments that are computed again."""
        parts = list(functions)
        if not 1 <= segments <= len(parts):
            raise SpecError(f"checkpoint_sequential: expected 1..{len(parts)} segments, got {segments}")
        size = -(-len(parts) // segments)

        def run(some: list[Any], x: Any) -> Any:
            for part in some:
                x = part(x)
            return x

        for start in range(0, len(parts), size):
            input = checkpoint.checkpoint(run, parts[start : start + size], input)
        return input
