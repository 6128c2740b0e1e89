"""The losses as modules."""

from typing import Any

from cyxcore import functional as F
from cyxcore.nn.module import Module


class _Loss(Module):
    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction


class CrossEntropyLoss(_Loss):
    """Of logits (N, C) and class indices (N,)."""

    def forward(self, logits: Any, labels: Any) -> Any:
        return F.cross_entropy(logits, labels, self.reduction)


class MSELoss(_Loss):
    def forward(self, prediction: Any, target: Any) -> Any:
        return F.mse_loss(prediction, target, self.reduction)


class BCEWithLogitsLoss(_Loss):
    def forward(self, logits: Any, target: Any) -> Any:
        return F.binary_cross_entropy_with_logits(logits, target, self.reduction)
