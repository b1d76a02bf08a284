"""Recipe: all settings of a training run, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from gifd.errors import InputError, one_line
from gifd.priors.sides import base_of

_WIDEST = 8192


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a StyleGAN2 is trained. The defaults are those of StyleGAN2-ADA for small images.

    Args:
        channel_base: the block at resolution r has `channel_base / r` channels,
        channel_max: but at most this many.
        latent: size of z and of w.
        layers: depth of the mapping network.
        batch: images per step.
        lr: learning rate of Adam, betas 0 and 0.99, for both networks.
        gamma: weight of R1; None takes `2e-4 * size^2 / batch`.
        path_length: weight of the path length regulariser; 0 for none, 2 is the paper's.
        mixing: probability of style mixing: two latents per image, switched at a random layer.
        ema: half-life of the averaged weights in images; None takes `batch * 10,000 / 32`.
        augment: target of adaptive augmentation, the mean sign of D(real); 0 for none.
        augment_speed: images in which the probability of augmentation can go from 0 to 1.
        mirror: whether half of the images are mirrored.
        precision: of the convolutions, float32 or bfloat16; parameters are float32.
        compile: whether to use torch.compile, which pays off in long runs.
        seed: seed of all randomness.

    Raises:
        InputError: a number out of range.
    """

    channel_base: int = 4096
    channel_max: int = 256
    latent: int = 256
    layers: int = 4
    batch: int = 32
    lr: float = 0.0025
    gamma: float | None = None
    path_length: float = 0.0
    mixing: float = 0.9
    ema: float | None = None
    augment: float = 0.6
    augment_speed: float = 500_000.0
    mirror: bool = True
    precision: str = "float32"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = {
            "channel_base of at least 64": self.channel_base >= 64,
            f"channel_max of 1 to {_WIDEST}": 1 <= self.channel_max <= _WIDEST,
            f"latent of 1 to {_WIDEST}": 1 <= self.latent <= _WIDEST,
            "layers of 1 to 64": 1 <= self.layers <= 64,
            "batch of at least 1": self.batch >= 1,
            "lr above 0": self.lr > 0,
            "gamma of at least 0": self.gamma is None or self.gamma >= 0,
            "path_length of at least 0": self.path_length >= 0,
            "mixing in [0, 1]": 0 <= self.mixing <= 1,
            "ema above 0": self.ema is None or self.ema > 0,
            "augment in [0, 1)": 0 <= self.augment < 1,
            "augment_speed above 0": self.augment_speed > 0,
            "precision float32 or bfloat16": self.precision in ("float32", "bfloat16"),
            "seed of 0 to 2^32 - 1": 0 <= self.seed < 2**32,
        }
        for what, holds in wanted.items():
            if not holds:
                raise InputError(f"expected a recipe with {what}, got {one_line(self, 400)}")

    def channels(self, size: int) -> tuple[int, ...]:
        """Channels of each block, from the base (see `base_of`) up to `size` x `size`."""
        base, _, doublings = base_of(size, size)
        sides = [base * 2**i for i in range(doublings + 1)]
        return tuple(max(1, min(self.channel_base // side, self.channel_max)) for side in sides)
