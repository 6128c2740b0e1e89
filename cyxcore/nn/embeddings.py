"""Tables of rows as layers: torch's constructors around cyxcore.functional."""

from typing import Any, Self

from cyxcore import functional as F
from cyxcore.eager import no_grad
from cyxcore.errors import ShapeError, SpecError
from cyxcore.nn.module import Layer, Parameter, check_sizes


class _Rows(Layer):
    """A table of rows with what looking them up may be told; see cyxcore.functional.embedding."""

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None

    def _table(self, count: int, size: int, padding_idx: int | None, given: Any) -> None:
        check_sizes(self, num_embeddings=count, embedding_dim=size)
        self.num_embeddings, self.embedding_dim, self.padding_idx = count, size, padding_idx
        if given is None:
            self.weight = Parameter.drawn((count, size), {"kind": "normal", "std": 1.0})
        elif given.shape != (count, size):
            raise ShapeError(f"{type(self).__name__}: expected _weight {(count, size)}, got {given.shape}")
        else:
            self.weight = given if isinstance(given, Parameter) else Parameter(given.detach())
        if padding_idx is not None:
            if not -count <= padding_idx < count:
                raise SpecError(f"{type(self).__name__}: expected padding_idx within {count} rows, got {padding_idx}")
            self.padding_idx = padding_idx % count
            if given is None:
                self._clear_padding()

    def _clear_padding(self) -> None:
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx] = 0.0

    def reset_parameters(self) -> None:
        """Give the rows values as those of a new table. Raises SpecError for a table that the program itself made."""
        super().reset_parameters()
        self._clear_padding()

    def _options(self, max_norm: float | None, norm_type: float, scale_grad_by_freq: bool, sparse: bool) -> None:
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.weight.shape))


class Embedding(_Rows):
    """Rows of weight (num_embeddings, embedding_dim) by index."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Any = None,
        _freeze: bool = False,
    ) -> None:
        super().__init__()
        self._table(num_embeddings, embedding_dim, padding_idx, _weight)
        self._options(max_norm, norm_type, scale_grad_by_freq, sparse)
        if _freeze:
            self.weight.requires_grad = False

    def forward(self, indices: Any) -> Any:
        options = (self.max_norm, self.norm_type, self.scale_grad_by_freq)
        return F.embedding(indices, self.weight, self.padding_idx, *options)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Any,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Self:
        """Rows that there are (count, dim), copied; not trained unless freeze is false."""
        count, size = embeddings.shape
        rows = Parameter(embeddings.detach().clone())
        return cls(count, size, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, rows, freeze)


class EmbeddingBag(_Rows):
    """The sum, mean or max of the rows of each bag of indices: (bags, size), or (L,) with offsets (bags,)."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Any = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        self._table(num_embeddings, embedding_dim, padding_idx, _weight)
        self._options(max_norm, norm_type, scale_grad_by_freq, sparse)
        self.mode, self.include_last_offset = mode, include_last_offset

    def forward(self, indices: Any, offsets: Any = None, per_sample_weights: Any = None) -> Any:
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in "max_norm norm_type scale_grad_by_freq mode include_last_offset padding_idx".split()
        }
        return F.embedding_bag(indices, self.weight, offsets, per_sample_weights=per_sample_weights, **options)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Any,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> Self:
        """Rows that there are (count, dim), copied; not trained unless freeze is false."""
        count, size = embeddings.shape
        rows = Parameter(embeddings.detach().clone())
        options = (max_norm, norm_type, scale_grad_by_freq, mode, sparse, rows, include_last_offset, padding_idx)
        made = cls(count, size, *options)
        made.weight.requires_grad = not freeze
        return made
