"""Captures: updates and weights that others wrote, fitted to a model."""

from gifd.captures.capture import (
    Capture,
    at_weights,
    from_arrays,
    from_gradients,
    from_module,
    from_state_dicts,
)
from gifd.captures.files import read_capture, read_weights
from gifd.captures.rounds import Round, read_rounds

__all__ = [
    "Capture",
    "Round",
    "at_weights",
    "from_arrays",
    "from_gradients",
    "from_module",
    "from_state_dicts",
    "read_capture",
    "read_rounds",
    "read_weights",
]
