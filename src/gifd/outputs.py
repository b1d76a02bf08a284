"""Outputs: finds the logits in the output of a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gifd.errors import ModelError

LOGITS = "logits"
"""Their name in the outputs of libraries."""


def logits_in(output: object) -> Tensor:
    """The logits in a network's output.

    These are the output itself if it is a tensor, the field `logits` of an object or mapping
    (Hugging Face's outputs, torchvision's named tuples), the first item of a tuple or list, or the
    only item of a mapping. Other outputs, such as those of auxiliary heads, are ignored.

    Raises:
        ModelError: none of these.
    """
    found = output
    if not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            found = output.get(LOGITS, next(iter(output.values())) if len(output) == 1 else None)
        elif hasattr(output, LOGITS):
            found = getattr(output, LOGITS)
        elif isinstance(output, tuple | list) and output:
            found = output[0]
    if isinstance(found, Tensor):
        return found
    keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise ModelError(
        "expected logits from the model: a tensor, the first of a tuple, or 'logits' of a dict or "
        f"object, got {type(output).__name__}{keys}: wrap it in a module that returns the logits"
    )
