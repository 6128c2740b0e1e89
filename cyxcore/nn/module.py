"""Module: a model as a tree of parts that hold parameters. torch's verbs, a fraction of its machinery."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from cyxcore import device as devices
from cyxcore import drawing
from cyxcore.attrs import is_whole
from cyxcore.dtype import DTYPES, FLOATS, dtype_name
from cyxcore.eager import Tensor, as_array, next_key
from cyxcore.errors import CyxError, DtypeError, ShapeError, SpecError
from cyxcore.graph import at_layer
from cyxcore.held import also_plain
from cyxcore.nn.hooks import KINDS, Handle, called
from cyxcore.symbols import Symbol
from cyxcore.values import TracedMode, Value

Array = np.ndarray[Any, Any]


class Parameter(Tensor):
    """A tensor that a module trains. `init` is the rule its first values came from, kept in traced graphs."""

    is_drawn = False  # by that rule

    def __init__(self, data: Any, init: Mapping[str, Any] | None = None, requires_grad: bool = True) -> None:
        super().__init__(devices.put(as_array(data)), requires_grad=requires_grad)
        self.init: Mapping[str, Any] = init or {"kind": "zeros"}

    @classmethod
    def drawn(cls, shape: tuple[int, ...], init: Mapping[str, Any]) -> "Parameter":
        """Values by an init rule, random ones from the generator cyxcore.manual_seed sets."""
        seed, step = next_key().tolist()
        made = cls(drawing.drawn(init, shape, "float32", seed, step, 0), init)
        made.is_drawn = True
        return made

    def draw(self) -> None:
        """Put other values by its rule into the same memory."""
        seed, step = next_key().tolist()
        values = as_array(drawing.drawn(self.init, self.shape, "float32", seed, step, 0), self.dtype)
        self._data[...] = devices.put(values, devices.name_of(self._data))
        self._wrote()


class Buffer(Tensor):
    """State of a module: `self.mean = nn.Buffer(cx.zeros(3))` is register_buffer("mean", ...).

    persistent: whether it is in the state dict.
    """

    def __init__(self, data: Any, *, persistent: bool = True) -> None:
        super().__init__(devices.put(as_array(data)))
        self.persistent = persistent


also_plain(Parameter)
also_plain(Buffer)


class LoadedKeys(NamedTuple):
    """The names that load_state_dict did not find, and those that it did not know."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def check_sizes(layer: "Module", groups: int = 1, kernel: Sequence[int] = (), **sizes: int) -> None:
    """Raises SpecError for sizes below 1, and for numbers of channels that the groups do not divide."""
    name = type(layer).__name__
    for size, value in (*sizes.items(), ("groups", groups), *(("kernel_size", side) for side in kernel)):
        if not is_whole(value) or value < 1:
            raise SpecError(f"{name}: expected {size} of at least 1, got {value!r}")
    if wrong := [f"{size}={value}" for size, value in sizes.items() if value % groups]:
        raise SpecError(f"{name}: expected channels that groups={groups} divides, got {' and '.join(wrong)}")


def check_windows(layer: "Module", rank: int, least: int = 1, **sizes: Any) -> None:
    """Raises SpecError for sizes of windows that are neither one number nor one for each of rank axes, or of which one
    is below the least."""
    for name, value in sizes.items():
        several = isinstance(value, (tuple, list))
        given = value if several else (value,)
        if several and len(given) != rank:
            raise SpecError(f"{type(layer).__name__}: {name}: expected one whole number or {rank}, got {value!r}")
        if not all(is_whole(each) and each >= least for each in given):
            kind = f"whole numbers of at least {least}" if len(given) > 1 else f"a whole number of at least {least}"
            raise SpecError(f"{type(layer).__name__}: {name}: expected {kind}, got {value!r}")


class Module:
    """Subclass it, set parameters and other modules as attributes in __init__, and write forward()."""

    training: bool | TracedMode

    def __init__(self) -> None:
        self.__dict__["training"] = True
        self.__dict__["_parameters"] = {}
        self.__dict__["_buffers"] = {}
        self.__dict__["_unsaved"] = set()  # names of buffers that are not persistent
        self.__dict__["_modules"] = {}

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} needs a forward method")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not inputs or not isinstance(inputs[0], Symbol):
            hooks = self.__dict__.get("_hooks")
            return self.forward(*inputs, **options) if hooks is None else called(self, hooks, inputs, options)
        builder = inputs[0].builder
        before, builder.layer = builder.layer, self.__dict__.get("_label", "")
        try:
            return self._run(inputs, options)
        except CyxError as error:
            raise at_layer(error, builder.layer) from None
        finally:
            builder.layer = before

    def _run(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        hooks = self.__dict__.get("_hooks")
        return self.forward(*inputs, **options) if hooks is None else called(self, hooks, inputs, options)

    def _hook(self, kind: str, hook: Callable[..., Any]) -> Handle:
        own = self.__dict__.setdefault("_hooks", {name: {} for name in KINDS})[kind]
        handle = Handle(own)
        own[handle] = hook
        return handle

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> Handle:
        """Before each call: hook(module, inputs) may return other inputs. In cx.compile it runs once, on symbols."""
        return self._hook("before", hook)

    def register_forward_hook(self, hook: Callable[..., Any]) -> Handle:
        """After each call: hook(module, inputs, output) may return another output. In cx.compile as above."""
        return self._hook("after", hook)

    def register_full_backward_hook(self, hook: Callable[..., Any]) -> Handle:
        """In each backward pass: hook(module, gradients of the inputs, (gradient of the output,)).

        It may return other gradients of the inputs; inputs that need none have None. Of modules that return one tensor
        and take at most one that requires a gradient. Raises GraphError in cx.compile.
        """
        return self._hook("backward", hook)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_parameters" not in self.__dict__:
            raise SpecError(f"{type(self).__name__}: call super().__init__() before setting {name!r}")
        if isinstance(value, Value) and not isinstance(value, Parameter):
            if isinstance(value, Buffer):
                return self.register_buffer(name, value, value.persistent)
            if name in self._buffers:  # self.count += 1: it stays a buffer, in a graph one that is written
                held = self._buffers[name]
                if isinstance(value, Symbol) and isinstance(held, Symbol) and not value.is_compiled:
                    held._assign(value)
                else:
                    self._buffers[name] = value.contiguous() if isinstance(value, Tensor) else value
                return
            if name in self._parameters:
                raise SpecError(
                    f"{type(self).__name__}: {name!r} is a parameter, got a tensor for it; write into it under "
                    "no_grad() with copy_(), or assign an nn.Parameter"
                )
        for table in ("_parameters", "_buffers", "_modules"):
            self.__dict__[table].pop(name, None)
        self._unsaved.discard(name)
        if isinstance(value, (Parameter, Module)):
            self.__dict__.pop(name, None)  # a plain attribute, None as a rule, would be found first
            self.__dict__["_parameters" if isinstance(value, Parameter) else "_modules"][name] = value
        else:
            self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        for table in ("_parameters", "_buffers", "_modules"):
            held = self.__dict__.get(table, {})
            if name in held:
                return held[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def register_buffer(self, name: str, value: Tensor | None, persistent: bool = True) -> None:
        """State that moves with the weights but is not trained; what is not persistent is in no state dict.

        None: there is none.
        """
        if value is None:
            return setattr(self, name, None)
        for table in (self.__dict__, self._parameters, self._modules):
            table.pop(name, None)  # a plain attribute of this name would hide it
        self._buffers[name] = value.contiguous()
        (self._unsaved.discard if persistent else self._unsaved.add)(name)

    def register_parameter(self, name: str, value: Parameter | None) -> None:
        """self.name = value, as PyTorch's code writes it."""
        setattr(self, name, value)

    def add_module(self, name: str, module: "Module | None") -> None:
        """self.name = module where the name is computed."""
        setattr(self, name, module)

    def _ready(self) -> None:
        """Raises SpecError where the parameters of this part are not known yet (cyxcore/nn/lazy.py)."""

    # walking ----------------------------------------------------------------------------------

    def children(self) -> Iterator["Module"]:
        yield from self._modules.values()

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        yield from self._modules.items()

    def get_parameter(self, target: str) -> Tensor:
        """The parameter of a dotted name. Raises AttributeError for what is none."""
        return self._of_table("parameter", "_parameters", target)

    def get_buffer(self, target: str) -> Tensor:
        """The buffer of a dotted name. Raises AttributeError for what is none."""
        return self._of_table("buffer", "_buffers", target)

    def _of_table(self, kind: str, table: str, target: str) -> Tensor:
        where, _, name = target.rpartition(".")
        part = self.get_submodule(where)
        part._ready()
        found: Tensor | None = part.__dict__[table].get(name)
        if found is None:
            raise AttributeError(f"get_{kind}: {target!r} is no {kind} of {type(self).__name__}")
        return found

    def get_submodule(self, target: str) -> "Module":
        """The part of a dotted name, itself for "". Raises AttributeError for what is none."""
        part: Any = self
        for name in target.split(".") if target else ():
            part = getattr(part, name)
            if not isinstance(part, Module):
                raise AttributeError(f"get_submodule: {target!r} is no module of {type(self).__name__}")
        return part

    def apply(self, change: Callable[["Module"], Any]) -> Self:
        """change(part) for everything in this, then for this itself."""
        for part in self.children():
            part.apply(change)
        change(self)
        return self

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(dotted name, module) of this and everything in it."""
        yield prefix, self
        for name, part in self._modules.items():
            yield from part.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator["Module"]:
        return (part for _, part in self.named_modules())

    def _named(
        self, table: str, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for place, part in self.named_modules(prefix) if recurse else [(prefix, self)]:
            part._ready()
            for name, value in part.__dict__[table].items():
                if id(value) not in seen:
                    if remove_duplicate:
                        seen.add(id(value))
                    yield f"{place}.{name}" if place else name, value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, parameter) of this, and unless recurse is False of everything in it; each once."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Tensor]:
        return (value for _, value in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, buffer), as named_parameters() has parameters."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return (value for _, value in self.named_buffers(recurse=recurse))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Of every parameter: False freezes them."""
        for value in self.parameters():
            value.requires_grad = requires_grad
        return self

    # state ------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Any]:
        """Every parameter and buffer by its dotted name: the arrays themselves, wherever they are."""
        return {name: value._data for table in ("_parameters", "_buffers") for name, value in self._named(table)}

    def saved_arrays(self) -> dict[str, Any]:
        """arrays() without the buffers that are not persistent."""
        left = {
            f"{prefix}.{name}" if prefix else name for prefix, part in self.named_modules() for name in part._unsaved
        }
        return {name: array for name, array in self.arrays().items() if name not in left}

    def _other_names(self) -> dict[str, str]:
        """Of tensors that stand in several places every name but the first, and that one."""
        first: dict[int, str] = {}
        named = [each for table in ("_parameters", "_buffers") for each in self._named(table, remove_duplicate=False)]
        return {name: known for name, value in named if (known := first.setdefault(id(value), name)) != name}

    def state_dict(self) -> dict[str, Array]:
        """Every parameter and persistent buffer by its dotted name, as NumPy arrays: the arrays themselves, not
        copies, unless the module is on a device with its own memory. Tied weights are there once, by their first name.
        """
        return {name: devices.host(array) for name, array in self.saved_arrays().items()}

    def to(
        self,
        *where: Any,
        device: Any = None,
        dtype: Any = None,
        non_blocking: bool = False,
        memory_format: Any = None,
    ) -> Self:
        """Move every parameter, buffer and gradient to a device, or convert the floats among them to a float dtype.

        non_blocking, memory_format: accepted and without effect.

        Optimisers made before go on with them after a move; make them anew after a conversion. Raises SpecError for
        an unknown device, KernelError or MissingExtra for one that does not run here.
        """
        for one in where:
            dtype, device = (one, device) if one in DTYPES else (dtype, one)
        dtype = None if dtype is None else dtype_name(dtype)
        if dtype is not None and dtype not in FLOATS:
            raise DtypeError(f"Module.to: expected a float dtype, got {dtype}; integers stay what they are")
        for table in ("_parameters", "_buffers"):
            for _, value in self._named(table):
                for held in (value, value.grad):
                    if held is not None:
                        array = held._data
                        if dtype is not None and held.dtype in FLOATS:
                            array, held.dtype = held.detach().astype(dtype)._data, dtype
                        held._data = array if device is None else devices.put(array, device)
                        held._memory = held._view = None
        return self

    def float(self) -> Self:
        """to("float32")"""
        return self.to("float32")

    def double(self) -> Self:
        """to("float64")"""
        return self.to("float64")

    def bfloat16(self) -> Self:
        """to("bfloat16")"""
        return self.to("bfloat16")

    def half(self) -> Self:
        """to("float16")"""
        return self.to("float16")

    def cpu(self) -> Self:
        """to("cpu")"""
        return self.to("cpu")

    def cuda(self) -> Self:
        """to("cuda")"""
        return self.to("cuda")

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadedKeys:
        """Copy arrays in by name. Returns (missing_keys, unexpected_keys), which only strict=False lets pass.

        Raises SpecError for missing or unknown names, ShapeError for other shapes. torch's num_batches_tracked counters
        are passed over where nothing here reads them. A tensor that stands in several places (tied weights) has one
        name here and may be given by all of them, as torch does: SpecError where they are not the same.
        """
        own = self.saved_arrays()
        counter = "num_batches_tracked"
        given = {name: as_array(value) for name, value in state.items() if name in own or not name.endswith(counter)}
        for other, name in self._other_names().items() if set(given) - set(own) else ():
            if other in given:
                value = given.pop(other)
                if not np.array_equal(given.setdefault(name, value), value, equal_nan=value.dtype.kind in "fc"):
                    raise SpecError(f"load_state_dict: {name} and {other} are one tensor here, but differ in what came")
        missing, unknown = sorted(set(own) - set(given)), sorted(set(given) - set(own))
        if strict and (missing or unknown):
            raise SpecError(f"load_state_dict: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
        common = [name for name in own if name in given]
        for name in common:
            if given[name].shape != own[name].shape:
                raise ShapeError(f"load_state_dict: {name}: expected {own[name].shape}, got {given[name].shape}")
        for name in common:
            array = as_array(given[name], devices.DTYPE_NAMES[own[name].dtype])
            own[name][...] = devices.put(array, devices.name_of(own[name]))
        for value in (*self.parameters(), *self.buffers()):
            value._wrote()
        return LoadedKeys(missing, unknown)

    def train(self, mode: bool = True) -> Self:
        """Dropout drops and batch norm learns."""
        for part in self.modules():
            part.__dict__["training"] = mode
        return self

    def eval(self) -> Self:
        """Dropout and batch norm behave as in a delivered model."""
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """No gradients, whatever set_to_none says: there are none until the next backward pass."""
        for value in self.parameters():
            value.grad = None

    # looks ------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        return ""

    def __repr__(self) -> str:
        if not self._modules:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = [f"  ({name}): " + repr(part).replace("\n", "\n  ") for name, part in self._modules.items()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


class Layer(Module):
    """A module whose weights are drawn by rules, and may be drawn anew."""

    def reset_parameters(self) -> None:
        """Give the weights values as those of a new layer. Raises SpecError for one that the program itself made."""
        held = [(name, value) for name, value in self._parameters.items() if value is not None]
        for name, value in held:
            if not getattr(value, "is_drawn", False):
                raise SpecError(
                    f"{type(self).__name__}.reset_parameters: no rule is known for {name}, which was assigned; "
                    "fill it with a function of nn.init"
                )
        for _, value in held:
            value.draw()
