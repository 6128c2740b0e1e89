"""Every error a user of Cyx can meet. Each says what was expected, what came, where, and what to do.

`code` is stable: programs compare it, people read the message.
"""


class CyxError(Exception):
    """The base of all errors that are the world's fault, not a bug of ours."""

    code = "error"


class ShapeError(CyxError, ValueError):
    """The inputs of an operation do not fit together. The message names each shape."""

    code = "shape_mismatch"


class AxisError(ShapeError, IndexError):
    """An axis a tensor does not have."""


class IndexingError(ShapeError, IndexError):
    """An index, a mask or a length that does not fit the shape it is of."""


class DtypeError(CyxError, TypeError):
    """An operation was given an element type it does not take."""

    code = "dtype_mismatch"


class GraphError(CyxError, ValueError):
    """A graph is not a valid model: unknown op, forward reference, bad attribute."""

    code = "bad_graph"


class SpecError(CyxError, ValueError):
    """A description (job file, layer list, training options) asks for something that cannot be."""

    code = "bad_spec"


class ContextOverflow(SpecError):
    """A prompt does not fit into the model's context. The message gives both counts."""

    code = "context_length_exceeded"


class Overloaded(CyxError, RuntimeError):
    """As much waits as may wait. Nothing was taken; the same request may succeed later."""

    code = "overloaded"


class DataError(CyxError, ValueError):
    """A dataset cannot be used as described. The message names the file, the column and the row."""

    code = "bad_data"


class FormatError(CyxError, ValueError):
    """A model file is damaged, too large, or of another format."""

    code = "bad_file"


class CheckpointError(FormatError):
    """A checkpoint is damaged, or belongs to another job. The message names what differs."""

    code = "bad_checkpoint"


class GradientError(CyxError, RuntimeError):
    """A gradient was asked for where there is none."""

    code = "no_gradient"


class KernelError(CyxError, NotImplementedError):
    """A device has no kernel for an operation."""

    code = "no_kernel"


class DivergedError(CyxError, ArithmeticError):
    """A training run left the finite numbers. The message names the step and the learning rate."""

    code = "diverged"


class MissingExtra(CyxError, ImportError):
    """An optional package is needed. The message gives the pip command."""

    code = "missing_extra"


def other_format(got: object, *readable: str) -> str:
    """What to say of a file whose format, "name/number", is none of those that are read: is it of a newer Cyx?"""
    found = str(got)[:40]
    name, _, number = found.partition("/")
    own = {int(version) for kind, _, version in (known.partition("/") for known in readable) if kind == name}
    if own and number.isdecimal() and int(number) > max(own):
        return (
            f"it was written by a newer Cyx ({found}; this one reads {' and '.join(readable)}): update Cyx to read it"
        )
    return f"expected the format {' or '.join(map(repr, readable))}, got {found!r}"
