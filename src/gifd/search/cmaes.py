"""CMA-ES: a search by ranking alone, for latents of a few hundred numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from gifd.errors import InputError
from gifd.search.optimizers import Evaluate, Optimizer, Task, Variables


@final
@dataclass(frozen=True, kw_only=True)
class CMAES(Optimizer):
    """Covariance matrix adaptation evolution strategy, each restart for itself.

    A step evaluates one candidate of each restart; after `population` of them the mean, the
    step size and the covariance are renewed. The start is the mean of the first population.

    Args:
        population: candidates a generation.
        sigma: the first step size; 1 is the spread of a standard normal latent.
        diagonal: above so many numbers a restart only the covariance's diagonal is adapted:
            the full matrix costs their square in memory and their cube in time.

    Source: Hansen, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772; the library `cma`.
    """

    population: int = 50
    sigma: float = 1.0
    diagonal: int = 1024

    gradients = False

    def __post_init__(self) -> None:
        if self.population < 4 or self.sigma <= 0:
            raise InputError(
                f"expected population >= 4 and sigma > 0, got population={self.population}, "
                f"sigma={self.sigma}"
            )

    def start(self, variables: Variables, steps: int, task: Task) -> Callable[[Evaluate], None]:
        """One strategy a restart, its randomness drawn from the run's."""
        restarts = range(len(next(iter(variables.values()))))
        seeds = torch.randint(2**31, (len(restarts),), generator=task.rng).tolist()
        means = {r: _flat({n: v[r] for n, v in variables.items()}) for r in restarts}
        strategies = {  # a restart that is not finite is left as it is, to be dropped
            r: self._strategy(mean, seeds[r])
            for r, mean in means.items()
            if np.isfinite(mean).all()
        }
        asked: dict[int, list[np.ndarray]] = {r: [] for r in strategies}
        told: dict[int, list[float]] = {r: [] for r in strategies}

        def step(evaluate: Evaluate) -> None:
            for r, strategy in strategies.items():
                if not asked[r]:
                    asked[r], told[r] = strategy.ask(), []
                _write(variables, r, asked[r][len(told[r])])
            objectives = evaluate(variables).objectives.tolist()
            for r, strategy in strategies.items():
                told[r].append(objectives[r] if math.isfinite(objectives[r]) else 1e30)
                if len(told[r]) == len(asked[r]):
                    strategy.tell(asked[r], told[r])
                    asked[r] = []

        return step

    def _strategy(self, mean: np.ndarray, seed: int) -> Any:
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
        return cma.CMAEvolutionStrategy(mean, self.sigma, options)


def _flat(own: Variables) -> np.ndarray:
    flat: np.ndarray = torch.cat([t.flatten() for t in own.values()]).double().cpu().numpy()
    return flat


def _write(variables: Variables, r: int, numbers: np.ndarray) -> None:
    """One candidate into the variables of restart r."""
    first = 0
    for variable in variables.values():
        size = variable[r].numel()
        part = torch.from_numpy(numbers[first : first + size]).to(variable)
        variable[r] = part.view_as(variable[r])
        first += size
