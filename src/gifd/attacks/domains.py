"""Domains: how many features GIFD searches in a generator, and within which radii."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gifd.errors import InputError
from gifd.priors.generator import IMAGE, Generator
from gifd.search import Chain, L1Ball, Projection, Sphere


@dataclass(frozen=True, kw_only=True)
class Domains:
    """GIFD's choices for a generator: the paper's, or ours if it is not in the paper.

    Args:
        features: K, the number of feature domains; 0 takes half of the stages, rounded up.
        radius: r_1 of the features' L1 balls.
        growth: growth of the radius per phase.
        beside: L1 radius of every variable of the latent phase, and later of those searched in
            addition to a feature (w, the noise maps); it grows like `radius`. Each style of w+
            and each noise map also keeps its norm. None: the latent keeps its initial norm and
            has no ball.
    """

    features: int = 0
    radius: float = 2000.0
    growth: float = 1000.0
    beside: float | None = None

    @classmethod
    def of(
        cls,
        prior: Generator,
        *,
        features: int | None = None,
        radius: float | None = None,
        growth: float | None = None,
    ) -> Domains:
        """The choices in `DOMAINS`, with the given ones replaced.

        Raises:
            InputError: more features than the generator has stages, or none.
        """
        paper = DOMAINS.get(prior.name, DOMAINS.get(prior.family, cls()))
        half = math.ceil(len(prior) / 2)
        most = max(1, len(prior) - 1)  # the last stage's output is the image itself
        depth = min(paper.features or half, most) if features is None else features
        if not 1 <= depth <= len(prior):
            raise InputError(f"expected 1 to {len(prior)} feature domains, got {depth}")
        return replace(
            paper,
            features=depth,
            radius=paper.radius if radius is None else radius,
            growth=paper.growth if growth is None else growth,
        )

    def limits(self, prior: Generator, k: int) -> dict[str, Projection]:
        """The constraint on each variable of phase k; phase 0 is the latent's.

        Args:
            prior: the generator, which knows the variables of phase k.
            k: the phase.
        """
        if k == 0 and self.beside is None:
            return {IMAGE: Sphere()}
        limits: dict[str, Projection] = {}
        for name in prior.searchable(k):
            if k > 0 and (name == IMAGE or self.beside is None):
                limits[name] = L1Ball(radius=self.radius + (k - 1) * self.growth)
            elif self.beside is not None:
                ball = L1Ball(radius=self.beside + k * self.growth)
                limits[name] = Chain((Sphere(each=True), ball))
        return limits


DOMAINS = {
    "stylegan2": Domains(features=4, beside=1000.0),
    "biggan-deep": Domains(features=9, growth=500.0),
    "digiface-dcgan": Domains(radius=150.0, growth=200.0),
    "faces64": Domains(features=4, radius=50.0, growth=55.0, beside=900.0),
    "photos64": Domains(features=4, radius=50.0, growth=110.0, beside=550.0),
}
"""The choices by a generator's name or family; any other generator uses the defaults.

The last three generators are not in the paper, and their radii are ours. The DCGAN's features have
mean L1 norms of 921, 1226 and 3886, those of faces64 341, 567, 891 and 1459, those of photos64 350,
748, 1506 and 3378. The paper's radii would not constrain them; ours are about 15 % of the norms.
`beside` is the L1 norm of a w+.
"""
