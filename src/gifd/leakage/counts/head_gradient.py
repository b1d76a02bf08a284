"""The head's gradient of a batch, class by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Bool, Float
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.errors import GRANT_LABELS, ModelError


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class HeadGradient:
    """The head's part of an update, in the units of a gradient, in float64 on the CPU.

    Args:
        weight: (N, F).
        bias: (N,), if the head trains one.
        head_weight: (N, F), of the model.
        head_bias: (N,), likewise.
        batch: B.
    """

    weight: Float[Tensor, "N F"]
    bias: Float[Tensor, "N"] | None
    head_weight: Float[Tensor, "N F"]
    head_bias: Float[Tensor, "N"]
    batch: int

    @classmethod
    def of(cls, observation: Observation) -> HeadGradient:
        """Of an observation.

        Raises:
            ModelError: no trained linear head, or one whose gradient vanishes.
        """
        model, ledger = observation.model, observation.ledger
        head = model.head(ledger.image_shape)
        gradient = observation.gradient

        def plain(tensor: Tensor) -> Tensor:
            return tensor.detach().cpu().double()

        weight = plain(gradient[head.weight])
        if not bool((weight != 0).any()):
            raise ModelError(
                f"expected a head whose gradient shows the labels, got zeros only: {GRANT_LABELS}"
            )
        own = plain(model.parameters[head.weight])
        seen = head.bias is not None and not observation.hides(head.bias)
        return cls(
            weight=weight,
            bias=plain(gradient[head.bias]) if seen and head.bias is not None else None,
            head_weight=own,
            head_bias=own.new_zeros(len(own))
            if head.bias is None
            else plain(model.parameters[head.bias]),
            batch=ledger.batch_size,
        )

    @property
    def present(self) -> Bool[Tensor, "N"] | None:
        """The classes whose bias has a negative gradient; None without a bias.

        Probabilities are not negative, so these classes are in the batch, whatever the network.
        """
        return None if self.bias is None else self.bias < 0

    @property
    def sums(self) -> Float[Tensor, "N"]:
        """g: the sums of the weight's rows."""
        return self.weight.sum(1)

    def softmax(self, representations: Float[Tensor, "M F"]) -> Float[Tensor, "M N"]:
        """P for these inputs of the head."""
        return (representations @ self.head_weight.T + self.head_bias).softmax(1)
