"""Functions that an optimiser calls around its steps and its states; names and arguments are PyTorch's."""

import functools
from collections.abc import Callable
from typing import Any

from cyxcore.nn.hooks import Handle, Hooks

KINDS = ("before_step", "after_step", "before_state", "after_state", "before_load", "after_load")
Hook = Callable[..., Any]


def _stepping(method: Hook, self: Any, args: Any, options: Any) -> Any:
    for hook in tuple(self.hooks["before_step"].values()):
        changed = hook(self, args, options)
        args, options = (args, options) if changed is None else changed
    result = method(self, *args, **options)
    for hook in tuple(self.hooks["after_step"].values()):
        hook(self, args, options)
    return result


def _saving(method: Hook, self: Any, args: Any, options: Any) -> Any:
    for hook in tuple(self.hooks["before_state"].values()):
        hook(self)
    state = method(self, *args, **options)
    for hook in tuple(self.hooks["after_state"].values()):
        changed = hook(self, state)
        state = state if changed is None else changed
    return state


def _loading(method: Hook, self: Any, args: Any, options: Any) -> Any:
    state = options["state_dict"] if "state_dict" in options else args[0]
    for hook in tuple(self.hooks["before_load"].values()):
        changed = hook(self, state)
        state = state if changed is None else changed
    method(self, state)
    for hook in tuple(self.hooks["after_load"].values()):
        hook(self)


AROUND = {"step": _stepping, "state_dict": _saving, "load_state_dict": _loading}


def _with_hooks(name: str, method: Hook) -> Hook:
    around = AROUND[name]

    @functools.wraps(method)
    def hooked(self: Any, *args: Any, **options: Any) -> Any:
        # What a method calls of its base class has none, nor has a step on symbols: a compiled step calls them itself.
        if self.hooks is None or self.inside or name in vars(self):
            return method(self, *args, **options)
        self.inside = True
        try:
            return around(method, self, args, options)
        finally:
            self.inside = False

    return hooked


class Hooked:
    """Gives the methods of its subclasses their hooks, which handle.remove() takes off again."""

    hooks: Hooks | None = None  # by kind
    inside = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in AROUND:
            if name in vars(cls):
                setattr(cls, name, _with_hooks(name, vars(cls)[name]))

    def _register(self, kind: str, hook: Hook) -> Handle:
        if self.hooks is None:
            self.hooks = {each: {} for each in KINDS}
        handle = Handle(self.hooks[kind])
        self.hooks[kind][handle] = hook
        return handle

    def register_step_pre_hook(self, hook: Hook) -> Handle:
        """Call hook(optimizer, args, kwargs) before each step(), also a compiled one; it may return both anew."""
        return self._register("before_step", hook)

    def register_step_post_hook(self, hook: Hook) -> Handle:
        """Call hook(optimizer, args, kwargs) after each step(), also a compiled one."""
        return self._register("after_step", hook)

    def register_state_dict_pre_hook(self, hook: Hook, prepend: bool = False) -> Handle:
        """Call hook(optimizer) before state_dict()."""
        return self._first("before_state", hook, prepend)

    def register_state_dict_post_hook(self, hook: Hook, prepend: bool = False) -> Handle:
        """Call hook(optimizer, state) after state_dict(); it may return another."""
        return self._first("after_state", hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Hook, prepend: bool = False) -> Handle:
        """Call hook(optimizer, state) before load_state_dict(); it may return another."""
        return self._first("before_load", hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Hook, prepend: bool = False) -> Handle:
        """Call hook(optimizer) after load_state_dict()."""
        return self._first("after_load", hook, prepend)

    def _first(self, kind: str, hook: Hook, prepend: bool) -> Handle:
        handle = self._register(kind, hook)
        own = (self.hooks or {})[kind]
        for other in [each for each in own if each is not handle] if prepend else []:
            own[other] = own.pop(other)
        return handle

    def call_step_hooks(self, kind: str) -> None:
        """Those of a compiled step, which has no arguments."""
        if self.hooks is not None:
            for hook in tuple(self.hooks[kind].values()):
                hook(self, (), {})
