"""Peeling: the values inside the victim, solved for layer by layer from a gradient.

`peel` is the recursion. `circuit` passes images with known values put in, `layers` turns the
gradient of a weight into equations, `first` and `factors` find the value to begin with, `mixtures`
separates the images of a batch, `system` solves.
"""

from gifd.leakage.peeling.circuit import Circuit
from gifd.leakage.peeling.peel import Left, Peeled, peel

__all__ = ["Circuit", "Left", "Peeled", "peel"]
