"""Prior score: how well a prior can express held-out images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gifd.attacks import Attack, gifd, gifd_latent
from gifd.attacks.ceiling import ceiling, exposed
from gifd.campaign.sweep import seeds_of
from gifd.errors import InputError
from gifd.metrics import PSNR, STLPIPS, kernel_distance
from gifd.priors import Generator
from gifd.search import Callback, Feature, L1Ball, Latent, Phase, RankedDraws

DRAWS = 1000
"""Random draws; a fit begins at the best of them."""
SHARE = 0.3
"""Radii of the features' L1 balls as a share of the entry's L1 norm; the same for all priors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PriorScore:
    """How closely a prior fits each image by squared error, and how far its samples are.

    Args:
        prior: its name.
        psnr, stlpips: one value per image, by domain ('latent', 'features').
        seeds: one per image, of its searches, so that intervals over the images cover starts too.
        shift: `kernel_distance` between the images and the prior's samples.
        fits: the fitted images by domain, (N, C, H, W) in [0, 1].
    """

    prior: str
    psnr: dict[str, list[float]]
    stlpips: dict[str, list[float]]
    seeds: list[int]
    shift: float
    fits: dict[str, Float[Tensor, "N C H W"]] = field(repr=False)


def score_prior(
    prior: Generator,
    images: Float[Tensor, "N C H W"],
    *,
    steps: int = 400,
    labels: Sequence[int] | None = None,
    samples: int = 500,
    seed: int = 0,
    offline: bool = False,
    callback: Callable[[int], Callback] | None = None,
) -> PriorScore:
    """Fit each image in the prior's latent alone, and in its feature domains as GIFD does.

    Args:
        prior: any generator.
        images: at least two held-out images in [0, 1].
        steps: steps per search, over all phases.
        labels: the class of each image, for a conditional prior; random by default.
        samples: number of samples of the prior, for the shift.
        seed: seed of all randomness; each image's own seed is derived from it (`seeds_of`).
        offline: use cached weights and download nothing.
        callback: image number -> the callback for that image's search.

    Raises:
        InputError: the prior makes images of another shape, or has no class for a label.
        WeightsError: the metrics' weights cannot be loaded.
    """
    if tuple(images.shape[1:]) != prior.image_shape:
        raise InputError(
            f"expected images of {' x '.join(map(str, prior.image_shape))} for {prior}, got "
            f"{' x '.join(map(str, images.shape[1:]))}"
        )
    rng = torch.Generator().manual_seed(seed)
    known = torch.randint(prior.classes or 1, (len(images),), generator=rng)
    if labels is not None and prior.classes is not None:
        known = torch.tensor(labels)
    searches = {
        "latent": _fit(gifd_latent(prior, preset="paper", restarts=1, best=True)),
        "features": _fit(gifd(prior, preset="paper", restarts=1, best=True)),
    }
    fits: dict[str, list[Tensor]] = {domain: [] for domain in searches}
    seeds = [seeds_of(index, seed=seed).trial for index in range(len(images))]
    for index, image in enumerate(images):
        observation = exposed(image[None], known[index : index + 1])
        for domain, search in searches.items():
            found = search.with_steps(steps)(
                observation, seed=seeds[index], callback=callback(index) if callback else None
            )
            fits[domain].append(found.images)
    found_images = {domain: torch.cat(each) for domain, each in fits.items()}
    psnr, stlpips = PSNR(), STLPIPS(offline=offline)
    drawn = prior.sample(samples, seed)
    return PriorScore(
        prior=prior.name,
        psnr={domain: psnr(fit, images).tolist() for domain, fit in found_images.items()},
        stlpips={domain: stlpips(fit, images).tolist() for domain, fit in found_images.items()},
        seeds=seeds,
        shift=kernel_distance(images, drawn, offline=offline),
        fits=found_images,
    )


def _fit(attack: Attack) -> Attack:
    """The attack's searches by squared error alone, the same for all priors."""
    draws = Phase(name="draws", space=Latent(), steps=1, begin=RankedDraws(evaluations=DRAWS - 1))
    limited = tuple(
        replace(phase, constraints={name: L1Ball(share=SHARE) for name in phase.constraints})
        if isinstance(phase.space, Feature)
        else phase
        for phase in attack.phases
    )
    return ceiling(replace(attack, phases=(draws, *limited)))
