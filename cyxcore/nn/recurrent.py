"""Recurrent modules: torch's constructors, parameter names and results around cyxcore.functional.recur."""

from typing import Any

from cyxcore import functional as F
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.recurrent import recur_as_one
from cyxcore.nn.module import Layer, Module, Parameter, check_sizes
from cyxcore.nn.utils.rnn import PackedSequence


def _given(module: Module, states: int, state: Any) -> tuple[Any, ...] | None:
    """The states to begin with, one of each kind. Raises ShapeError: a tensor for a pair would be taken row by row."""
    if state is None:
        return None
    given = (state,) if states == 1 else state
    if not isinstance(given, tuple | list) or len(given) != states or isinstance(given[0], tuple | list):
        what = "a tensor" if states == 1 else "a pair (h, c) of tensors"
        raise ShapeError(f"{type(module).__name__}: expected {what} as state, got {type(state).__name__}")
    return tuple(given)


class _Recurrent(Layer):
    """Layers of one kind of cell, each in one or both directions.

    x: (T, N, C), or (N, T, C) with batch_first. Returns (outputs of the last layer, last states of every layer and
    direction (layers * directions, N, H), a pair of them for LSTM). lengths: (N,), of rows shorter than T; or x is a
    PackedSequence, and so is the result. x may be one row without N, and so are the states then.
    """

    kind: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
    ) -> None:
        """proj_size: of an LSTM, to how many its hidden states are projected; 0: they are as they are."""
        super().__init__()
        if num_layers < 1:
            raise SpecError(f"{type(self).__name__}: expected at least one layer, got {num_layers}")
        check_sizes(self, input_size=input_size, hidden_size=hidden_size)
        if proj_size and (self.kind != "lstm" or not 0 < proj_size < hidden_size):
            raise SpecError(
                f"{type(self).__name__}: expected proj_size 0, or below hidden_size {hidden_size} for an LSTM, "
                f"got {proj_size}"
            )
        self.proj_size, projected = proj_size, proj_size or hidden_size
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        self.directions = ("", "_reverse") if bidirectional else ("",)
        init = {"kind": "kaiming_uniform", "fan_in": hidden_size}
        rows = F.CELLS[self.kind].gates * hidden_size
        for layer in range(num_layers):
            columns = input_size if layer == 0 else projected * len(self.directions)
            for suffix in self.directions:
                name = f"l{layer}{suffix}"
                setattr(self, f"weight_ih_{name}", Parameter.drawn((rows, columns), init))
                setattr(self, f"weight_hh_{name}", Parameter.drawn((rows, projected), init))
                for which in ("ih", "hh"):
                    setattr(self, f"bias_{which}_{name}", Parameter.drawn((rows,), init) if bias else None)
                if proj_size:
                    setattr(self, f"weight_hr_{name}", Parameter.drawn((proj_size, hidden_size), init))

    def _weights(self, layer: int, suffix: str) -> F.Weights:
        name = f"l{layer}{suffix}"
        parts = [f"{what}_{which}_{name}" for what in ("weight", "bias") for which in ("ih", "hh")]
        projection = getattr(self, f"weight_hr_{name}") if self.proj_size else None
        return F.Weights(*(getattr(self, part) for part in parts))._replace(hr=projection)

    def flatten_parameters(self) -> None:
        """Without effect: weights are read where they are."""

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> Any:
        if isinstance(x, PackedSequence):
            data = x.padded if x.batch_first == self.batch_first else x.padded.transpose(0, 1)
            outputs, last = self.forward(data, state, x.lengths)
            return PackedSequence(outputs, x.lengths, self.batch_first), last
        if x.ndim == 2:
            return self._of_one(x, state)
        steps = x if self.batch_first else x.transpose(1, 0, 2)
        states = F.CELLS[self.kind].states
        given = _given(self, states, state)
        ended_in: list[tuple[Any, ...]] = []
        for layer in range(self.num_layers):
            if layer:
                steps = F.dropout(steps, self.dropout, self.training)
            sides = []
            for suffix in self.directions:
                start = None if given is None else [part[len(ended_in)] for part in given]
                weights = self._weights(layer, suffix)
                found, ended = recur_as_one(self.kind, steps, weights, start, lengths, bool(suffix))
                sides.append(found)
                ended_in.append(ended)
            steps = sides[0] if len(sides) == 1 else F.concat(sides, 2)
        ends = tuple(F.stack([ended[part] for ended in ended_in], 0) for part in range(states))
        return (steps if self.batch_first else steps.transpose(1, 0, 2)), (ends if states > 1 else ends[0])

    def _of_one(self, x: Any, state: Any) -> Any:
        """A single row (T, C), its states (layers * directions, H)."""
        axis = 0 if self.batch_first else 1
        several = isinstance(state, tuple | list)
        if state is not None:
            state = tuple(part.expand_dims(1) for part in state) if several else state.expand_dims(1)
        outputs, ends = self.forward(x.expand_dims(axis), state)
        last = tuple(end.squeeze(1) for end in ends) if isinstance(ends, tuple) else ends.squeeze(1)
        return outputs.squeeze(axis), last

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bidirectional={self.bidirectional}"
        )


class RNN(_Recurrent):
    """h' = tanh(W x + b + U h + c), or ReLU of it."""

    kind = "rnn_tanh"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise SpecError(f"RNN: expected nonlinearity tanh or relu, got {nonlinearity!r}")
        self.__dict__["kind"] = f"rnn_{nonlinearity}"
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)


class LSTM(_Recurrent):
    """Long short-term memory over (L, N, H), or (N, L, H) with batch_first. Returns (output, (h, c))."""

    kind = "lstm"


class GRU(_Recurrent):
    """Gated recurrent units over (L, N, H), or (N, L, H) with batch_first; see RNN."""

    kind = "gru"


class _Cell(Layer):
    """One step of a recurrence. x: (N, C); states: (N, H) each, zeros when absent; or without N. Returns the next."""

    kind: str

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        rows, init = F.CELLS[self.kind].gates * hidden_size, {"kind": "kaiming_uniform", "fan_in": hidden_size}
        self.weight_ih = Parameter.drawn((rows, input_size), init)
        self.weight_hh = Parameter.drawn((rows, hidden_size), init)
        self.bias_ih = Parameter.drawn((rows,), init) if bias else None
        self.bias_hh = Parameter.drawn((rows,), init) if bias else None

    def forward(self, x: Any, state: Any = None) -> Any:
        states = F.CELLS[self.kind].states
        weights = F.Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if x.ndim not in (1, 2):
            raise ShapeError(f"{type(self).__name__}: expected x (N, {self.input_size}), got {x.shape}")
        given = _given(self, states, state)
        if x.ndim == 1:
            one = None if given is None else tuple(part.expand_dims(0) for part in given)
            _, new = F.recur(self.kind, x.reshape(1, 1, -1), weights, one)
            return tuple(part.squeeze(0) for part in new) if states > 1 else new[0].squeeze(0)
        _, new = F.recur(self.kind, x.expand_dims(1), weights, given)
        return new if states > 1 else new[0]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}"


class RNNCell(_Cell):
    """h' = tanh(W x + b + U h + c), or ReLU of it."""

    kind = "rnn_tanh"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh") -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise SpecError(f"RNNCell: expected nonlinearity tanh or relu, got {nonlinearity!r}")
        self.__dict__["kind"] = f"rnn_{nonlinearity}"
        super().__init__(input_size, hidden_size, bias)


class LSTMCell(_Cell):
    """One step of an LSTM: (x, (h, c)) -> (h', c')."""

    kind = "lstm"


class GRUCell(_Cell):
    """One step of a GRU: (x, h) -> h'."""

    kind = "gru"


class Bidirectional(Module):
    """An RNN, LSTM or GRU read from both ends; the two results are concatenated, summed, multiplied or averaged.

    x: (N, T, C). Returns (N, T, 2 H) ("concat") or (N, T, H). The parameters are those of the recurrent module with
    bidirectional=True, under "rnn.".
    """

    kinds: dict[str, Any] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
    merges = ("concat", "sum", "multiply", "average")

    def __init__(
        self, kind: str, input_size: int, hidden_size: int, merge_mode: str = "concat", **options: Any
    ) -> None:
        super().__init__()
        if kind not in self.kinds or merge_mode not in self.merges:
            raise SpecError(
                f"Bidirectional: expected one of {', '.join(self.kinds)} and one of {', '.join(self.merges)}, "
                f"got {kind!r} and {merge_mode!r}"
            )
        self.hidden_size, self.merge_mode = hidden_size, merge_mode
        self.rnn = self.kinds[kind](input_size, hidden_size, batch_first=True, bidirectional=True, **options)

    def forward(self, x: Any) -> Any:
        both = self.rnn(x)[0]
        if self.merge_mode == "concat":
            return both
        there, back = both[:, :, : self.hidden_size], both[:, :, self.hidden_size :]
        if self.merge_mode == "multiply":
            return there * back
        return (there + back) * (0.5 if self.merge_mode == "average" else 1.0)
