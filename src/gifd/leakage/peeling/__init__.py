"""Peeling: the values inside the victim, solved for layer by layer from a gradient.

`peel` is the recursion. `circuit` passes images with known values put in, and `replay` finds out
what follows from them. `begin`, `first`, `factors` and `mixtures` find the first value. `layers`
turns the gradient of a weight into equations, and `system` solves them.
"""

from gifd.leakage.peeling.circuit import Circuit
from gifd.leakage.peeling.peel import Left, Peeled, peel

__all__ = ["Circuit", "Left", "Peeled", "peel"]
