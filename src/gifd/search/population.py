"""Populations: gradient-free searches that evaluate a generation of candidates at a time."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gifd.errors import InputError

Numbers = NDArray[np.float64]


@runtime_checkable
class Strategy(Protocol):
    """The state of one search, in the ask-and-tell interface."""

    def ask(self) -> list[Numbers]:
        """A generation of candidates, (M,) each."""

    def tell(self, candidates: list[Numbers], objectives: list[float]) -> None:
        """Report their objectives; lower is better."""


class Population(ABC):
    """Makes candidates. Every subclass has `population`, the number per generation."""

    population: int

    @abstractmethod
    def start(self, mean: Numbers, seed: int) -> Strategy:
        """Begin one search.

        Args:
            mean: (M,) the start.
            seed: seed of all its randomness.
        """


@final
@dataclass(frozen=True, kw_only=True)
class CMAES(Population):
    """Covariance matrix adaptation evolution strategy, separately for each search.

    The mean, step size and covariance are updated after every `population` evaluations. The
    start is the mean of the first population.

    Args:
        population: candidates per generation.
        sigma: initial step size; 1 is the spread of a standard normal latent.
        diagonal: above this many variables only the covariance's diagonal is adapted; the full
            matrix costs their square in memory and their cube in time.

    Source: Hansen, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772; the library `cma`.
    """

    population: int = 50
    sigma: float = 1.0
    diagonal: int = 1024

    def __post_init__(self) -> None:
        if self.population < 4 or not self.sigma > 0:
            raise InputError(
                f"expected population >= 4 and sigma > 0, got population={self.population}, "
                f"sigma={self.sigma}"
            )

    def start(self, mean: Numbers, seed: int) -> Strategy:
        """A strategy with its own random numbers."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns if matplotlib is missing
            import cma
        rng = np.random.default_rng(seed)
        options = {
            "popsize": self.population,
            "CMA_diagonal": mean.size > self.diagonal,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": math.nan,  # otherwise it seeds numpy's global generator
            "verbose": -9,
        }
        strategy: Strategy = cma.CMAEvolutionStrategy(mean, self.sigma, options)
        return strategy
