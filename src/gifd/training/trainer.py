"""Trainer: trains a StyleGAN2 and its discriminator; its whole state can be saved."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gifd.priors import Checkpoint
from gifd.priors.sides import base_of
from gifd.priors.style_network import StyleNetwork
from gifd.training.augment import Adapt, Augment
from gifd.training.data import ImageSet
from gifd.training.discriminator import Discriminator
from gifd.training.losses import discriminator_loss, generator_loss, path_length, r1
from gifd.training.recipe import Recipe

R1_EVERY, PATH_EVERY = 16, 4  # steps; the regularisers are lazy
W_DECAY, PATH_DECAY = 0.998, 0.01
EMA_RAMP = 0.05  # the averaged weights have a shorter half-life in the beginning
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps of each parameter


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses of a step.

    Args:
        generator, discriminator: their losses.
        real: share of real images that the discriminator classifies as real.
    """

    generator: float
    discriminator: float
    real: float


@final
class Trainer:
    """Trains a `StyleNetwork` on an `ImageSet`; a saved state continues bit for bit.

    A step trains the generator on `batch` fakes and the discriminator on as many fakes and reals.
    R1 is added every 16th step, the path length regulariser, if used, every 4th. Both networks
    see augmented images only. `average` is the exponential moving average of the generator's
    weights.

    Args:
        data: the images.
        recipe: all settings.
        device: where to train.

    Differs from the official code: R1 is computed at the augmented reals, which the discriminator
    sees; reduced precision is bfloat16 in every layer, without clamping.
    """

    def __init__(
        self, data: ImageSet, recipe: Recipe, *, device: torch.device | str = "cpu"
    ) -> None:
        self.data, self.recipe, self.device = data, recipe, torch.device(device)
        self.channels = recipe.channels(data.size)
        base, _, _ = base_of(data.size, data.size)
        classes = len(data.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.generator = StyleNetwork(
                self.channels,
                colours=data.colours,
                base=base,
                z=recipe.latent,
                w=recipe.latent,
                classes=classes,
                layers=recipe.layers,
            )
            self.discriminator = Discriminator(
                self.channels, colours=data.colours, base=base, classes=classes
            )
        for network in (self.generator, self.discriminator):
            network.to(self.device)
            for parameter in network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizers = {
            "generator": _adam(self.generator, recipe.lr, PATH_EVERY if recipe.path_length else 0),
            "discriminator": _adam(self.discriminator, recipe.lr, R1_EVERY),
        }
        self.rng = torch.Generator(self.device).manual_seed(recipe.seed)
        self.augment, self.adapt = (
            Augment(),
            Adapt(target=recipe.augment, speed=recipe.augment_speed),
        )
        self.p, self.seen = 0.0, 0
        self.path_mean = torch.zeros((), device=self.device)
        self.signs = torch.zeros((), device=self.device)  # of D(real), since p last changed
        self._draw = torch.compile(self.generator) if recipe.compile else self.generator
        self._discriminate = (
            torch.compile(self.discriminator) if recipe.compile else self.discriminator
        )

    @property
    def steps(self) -> int:
        """The number of steps done."""
        return self.seen // self.recipe.batch

    def step(self) -> Losses:
        """One step of each network; `seen` grows by the batch."""
        recipe, step = self.recipe, self.steps
        real, labels = self.data.batch(self.seen, recipe.batch, recipe.seed)
        real = real.to(self.device, memory_format=torch.channels_last)
        labels = None if labels is None else labels.to(self.device)
        if recipe.mirror:
            flip = torch.rand(len(real), 1, 1, 1, generator=self.rng, device=self.device) < 0.5
            real = torch.where(flip, real.flip(3), real)
        generator_now = self._generator_step()
        if recipe.path_length and step % PATH_EVERY == 0:
            self._path_step()
        discriminator_now, share = self._discriminator_step(real, labels)
        if step % R1_EVERY == 0:
            self._r1_step(real, labels)
        self.seen += recipe.batch
        self._move_average()
        if recipe.augment and self.steps % self.adapt.interval == 0:
            images = recipe.batch * self.adapt.interval
            self.p = self.adapt(self.p, float(self.signs) / images, images)
            self.signs.zero_()
        return Losses(
            generator=float(generator_now), discriminator=float(discriminator_now), real=share
        )

    def checkpoint(self) -> Checkpoint:
        """The averaged generator in the format of `gifd.priors`, in half precision."""
        tensors = {
            name: tensor.detach().cpu().half() for name, tensor in self.average.state_dict().items()
        }
        return Checkpoint(architecture="stylegan2", tensors=tensors, options={})

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as named tensors on the CPU."""
        state = {"rng": self.rng.get_state(), "path_mean": self.path_mean, "signs": self.signs}
        state["seen"] = torch.tensor(self.seen)
        state["p"] = torch.tensor(self.p, dtype=torch.float64)
        for part, network in self._networks().items():
            state |= {f"{part}.{name}": t for name, t in network.state_dict().items()}
        for part, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                state |= {f"adam.{part}.{index}.{name}": t for name, t in moments.items()}
        return {name: t.detach().cpu().clone() for name, t in state.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state()`.

        Raises:
            KeyError, RuntimeError, ValueError, TypeError: not a state, or another trainer's.
        """
        for part, network in self._networks().items():
            network.load_state_dict(_under(state, part))
        for part, optimizer in self.optimizers.items():
            moments: dict[int, dict[str, Any]] = {}
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            for name, tensor in _under(state, f"adam.{part}").items():
                index, _, what = name.partition(".")
                shape = {"step": torch.Size()}.get(what, parameters[int(index)].shape)
                if what not in _MOMENTS or tensor.shape != shape:
                    raise ValueError(f"adam.{part}.{name} is {tuple(tensor.shape)}")
                moments.setdefault(int(index), {})[what] = tensor.clone()
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        self.rng.set_state(state["rng"])
        self.path_mean.copy_(state["path_mean"])
        self.signs.copy_(state["signs"])
        self.seen, self.p = int(state["seen"]), float(state["p"])
        if self.seen < 0 or not 0 <= self.p <= 1:
            raise ValueError(f"seen is {self.seen}, p {self.p}")

    def _networks(self) -> dict[str, nn.Module]:
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
        }

    def _styles(self, count: int, labels: Tensor | None) -> Float[Tensor, "B L D"]:
        """Styles of random latents, with style mixing."""
        w: Tensor = self.generator.mapping(self._normal(count, self.recipe.latent), labels)
        with torch.no_grad():
            self.generator.mapping.w_avg.lerp_(w.mean(0), 1 - W_DECAY)
        layers = self.generator.layers
        styles = w[:, None].expand(-1, layers, -1)  # (B, L, D)
        if self.recipe.mixing == 0:
            return styles
        other = self.generator.mapping(self._normal(count, self.recipe.latent), labels)[:, None]
        mixed = torch.rand((), generator=self.rng, device=self.device) < self.recipe.mixing
        cut = torch.randint(1, layers, (), generator=self.rng, device=self.device)
        behind = torch.arange(layers, device=self.device) >= cut
        return torch.where((behind & mixed)[:, None], other, styles)

    def _fakes(self, count: int) -> tuple[Float[Tensor, "B C H W"], Tensor | None]:
        labels = self._labels(count)
        styles, noise = self._styles(count, labels), self._noise(count)
        with self._reduced():
            images = self._draw(styles, noise)
        return images.float(), labels

    def _noise(self, count: int) -> dict[str, Tensor]:
        return {
            f"noise{i}": self._normal(count, 1, *own.shape)
            for i, own in enumerate(self.generator.noise_maps)
        }

    def _labels(self, count: int) -> Tensor | None:
        """Labels for fakes, drawn from those of the reals."""
        if self.data.labels is None:
            return None
        chosen = torch.randint(len(self.data), (count,), generator=self.rng, device=self.device)
        return self.data.labels[chosen.cpu()].to(self.device)

    def _logits(self, images: Tensor, labels: Tensor | None) -> Float[Tensor, "B"]:
        images = self.augment(images, self.p, self.rng)
        with self._reduced():
            logits: Tensor = self._discriminate(images, labels).float()
        return logits

    def _generator_step(self) -> Tensor:
        images, labels = self._fakes(self.recipe.batch)
        self.discriminator.requires_grad_(False)
        loss = generator_loss(self._logits(images, labels))
        self._descend("generator", loss)
        self.discriminator.requires_grad_(True)
        return loss.detach()

    def _path_step(self) -> None:
        count = max(1, self.recipe.batch // 2)
        styles = self._styles(count, self._labels(count))
        images = self.generator(styles, self._noise(count))
        lengths = path_length(images, styles, self.rng)
        self.path_mean.lerp_(lengths.detach().mean(), PATH_DECAY)
        penalty = (lengths - self.path_mean).square().mean()
        self._descend("generator", penalty * self.recipe.path_length * PATH_EVERY)

    def _discriminator_step(self, real: Tensor, labels: Tensor | None) -> tuple[Tensor, float]:
        with torch.no_grad():
            fake, fake_labels = self._fakes(self.recipe.batch)
        logits = self._logits(real, labels)
        loss = discriminator_loss(logits, self._logits(fake, fake_labels))
        self._descend("discriminator", loss)
        self.signs += logits.detach().sign().sum()
        return loss.detach(), float((logits.detach() > 0).float().mean())

    def _r1_step(self, real: Tensor, labels: Tensor | None) -> None:
        seen = self.augment(real, self.p, self.rng).detach().requires_grad_()
        gamma = self.recipe.gamma
        if gamma is None:
            gamma = 2e-4 * self.data.size**2 / self.recipe.batch
        penalty = r1(self.discriminator(seen, labels), seen)
        self._descend("discriminator", penalty * gamma * R1_EVERY)

    def _descend(self, part: str, loss: Tensor) -> None:
        self.optimizers[part].zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers[part].step()

    @torch.no_grad()
    def _move_average(self) -> None:
        half = self.recipe.ema or self.recipe.batch * 10_000 / 32
        half = min(half, self.seen * EMA_RAMP)
        keep = 0.5 ** (self.recipe.batch / max(half, 1e-8))
        now = self.generator.state_dict()
        learnt = dict(self.generator.named_parameters())
        for name, mean in self.average.state_dict().items():
            mean.lerp_(now[name], 1 - keep if name in learnt else 1.0)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng, device=self.device)

    def _reduced(self) -> torch.autocast:
        enabled = self.recipe.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


def _adam(network: nn.Module, lr: float, lazy: int) -> torch.optim.Adam:
    """Adam, adjusted for a lazy regulariser in every `lazy`-th step."""
    share = lazy / (lazy + 1) if lazy else 1.0
    return torch.optim.Adam(network.parameters(), lr * share, betas=(0.0, 0.99**share))


def _under(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
