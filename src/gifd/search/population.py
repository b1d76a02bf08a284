"""Populations: searches that compare many candidates a generation and ask for no gradient."""

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
    """One search under way: it asks for the objective of candidates and is told it."""

    def ask(self) -> list[Numbers]:
        """A generation of candidates, (M,) each."""

    def tell(self, candidates: list[Numbers], objectives: list[float]) -> None:
        """Their objectives, less is better."""


class Population(ABC):
    """A rule that breeds candidates. Every subclass has `population`, how many a generation."""

    population: int

    @abstractmethod
    def start(self, mean: Numbers, seed: int) -> Strategy:
        """Begin one search.

        Args:
            mean: (M,) where it begins.
            seed: of all its randomness.
        """


@final
@dataclass(frozen=True, kw_only=True)
class CMAES(Population):
    """Covariance matrix adaptation evolution strategy, each search for itself.

    After `population` evaluations the mean, the step size and the covariance are renewed. The
    start is the mean of the first population.

    Args:
        population: candidates a generation.
        sigma: the first step size; 1 is the spread of a standard normal latent.
        diagonal: above so many numbers a search only the covariance's diagonal is adapted:
            the full matrix costs their square in memory and their cube in time.

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
        """A strategy with randomness of its own."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it remarks that there is no matplotlib
            import cma
        rng = np.random.default_rng(seed)
        options = {
            "popsize": self.population,
            "CMA_diagonal": mean.size > self.diagonal,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": math.nan,  # its own would seed numpy for everybody
            "verbose": -9,
        }
        strategy: Strategy = cma.CMAEvolutionStrategy(mean, self.sigma, options)
        return strategy
