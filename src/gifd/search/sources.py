"""Sources: images that an attacker learns from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gifd.errors import InputError
from gifd.leaves import dead_leaves
from gifd.search.spaces import Draw, Latent, SearchContext


class Source(ABC):
    """Images of the attacker's own, as many as it wants."""

    @abstractmethod
    def __call__(
        self, context: SearchContext, count: int, rng: torch.Generator
    ) -> Float[Tensor, "N C H W"]:
        """This many images in [0, 1].

        Args:
            context: of the run.
            count: N.
            rng: source of all randomness.
        """


@final
@dataclass(frozen=True)
class Leaves(Source):
    """Dead leaves: random shapes (`gifd.leaves`). They need no data and no prior."""

    def __call__(self, context: SearchContext, count: int, rng: torch.Generator) -> Tensor:
        """Independent images."""
        return dead_leaves(count, context.image_shape, rng).to(context.model.device)


@final
@dataclass(frozen=True, kw_only=True)
class Samples(Source):
    """Samples of the prior, moved.

    Args:
        shift: see `moved`.
    """

    shift: float = 0.125

    def __call__(self, context: SearchContext, count: int, rng: torch.Generator) -> Tensor:
        """Independent samples; those of a conditional prior are of random classes."""
        found = []
        with torch.no_grad():
            for first in range(0, count, 64):
                draw = Draw(restarts=min(64, count - first), rng=rng)
                several = SearchContext(
                    model=context.model,
                    generator=context.generator,
                    image_shape=context.image_shape,
                    batch=1,
                )
                shown = Latent().pictures(several, Latent().start(several, draw))
                found.append(shown.flatten(0, 1).clamp(0, 1))
        return mirrored(moved(torch.cat(found), self.shift, rng), rng)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Public(Source):
    """Public images of the private ones' kind, moved.

    Args:
        images: (N, C, H, W) in [0, 1], at least one.
        name: where they are from, for the record.
        shift: see `moved`.
    """

    images: Float[Tensor, "N C H W"]
    name: str = "public"
    shift: float = 0.125

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or not len(self.images):
            raise InputError(
                f"expected public images (N, C, H, W), got shape {tuple(self.images.shape)}"
            )

    def __repr__(self) -> str:
        return f"Public({self.name!r}, {len(self.images)} images, shift={self.shift})"

    def __call__(self, context: SearchContext, count: int, rng: torch.Generator) -> Tensor:
        """Each image once, then each once more, in random orders.

        Raises:
            InputError: their shape is not that of the private ones.
        """
        if tuple(self.images.shape[1:]) != tuple(context.image_shape):
            raise InputError(
                f"expected public images of {tuple(context.image_shape)} as the private ones, got "
                f"{tuple(self.images.shape[1:])}"
            )
        rounds = -(-count // len(self.images))
        order = [torch.randperm(len(self.images), generator=rng) for _ in range(rounds)]
        taken = self.images[torch.cat(order)[:count]].to(context.model.device)
        return mirrored(moved(taken, self.shift, rng), rng)


def moved(
    images: Float[Tensor, "N C H W"], shift: float, rng: torch.Generator
) -> Float[Tensor, "N C H W"]:
    """Each image shifted by whole pixels, uniformly within `shift` of its sides.

    The private images may be framed differently. What comes in from outside is mirrored.
    """
    height, width = images.shape[-2:]
    y, x = int(shift * height), int(shift * width)
    padded = F.pad(images, (x, x, y, y), mode="reflect")
    tops = torch.randint(2 * y + 1, (len(images),), generator=rng).tolist()
    lefts = torch.randint(2 * x + 1, (len(images),), generator=rng).tolist()
    corners = zip(padded, tops, lefts, strict=True)
    return torch.stack(
        [each[:, top : top + height, left : left + width] for each, top, left in corners]
    )


def mirrored(images: Float[Tensor, "N C H W"], rng: torch.Generator) -> Float[Tensor, "N C H W"]:
    """Each image, or its mirror image."""
    flip = torch.rand(len(images), generator=rng) < 0.5
    return torch.where(flip.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)
