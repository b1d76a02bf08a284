"""Fit: whether an update looks like one of the clients that the attacker believes in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gifd.attacker.observation import Observation
from gifd.audit.stand_ins import stand_ins
from gifd.audit.statistics import Kind, Statistics
from gifd.errors import InputError, ModelError
from gifd.leakage.labels import label_hypotheses
from gifd.leakage.one_label import read_label
from gifd.updates import Update


@final
@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an update compares with those of simulated clients.

    Args:
        misfit: how unusual its most unusual statistic is, relative to the most unusual one of any
            simulated client.
        reason: what is unusual, in words.
        clients: how many were simulated.
        factor: how many times as large as theirs it is, if nothing else is unusual; None if it is
            explained, or something else is.
        contradicted: what else the update shows that cannot be as assumed, in words; None if
            nothing.
    """

    misfit: float
    reason: str
    clients: int
    factor: float | None = None
    contradicted: str | None = None

    LIMIT: ClassVar[float] = 2.0
    """The largest misfit of an update that is explained. Its error rates are in the docs."""

    @property
    def explained(self) -> bool:
        """Whether such a client may have sent the update."""
        return self.misfit <= self.LIMIT and self.contradicted is None

    def __str__(self) -> str:
        if self.explained:
            return (
                f"explained: the update looks like those of {self.clients} simulated clients "
                f"(misfit {self.misfit:.2f}, limit {self.LIMIT:g})"
            )
        if self.misfit <= self.LIMIT:
            return f"not explained by what is assumed: {self.reason}"
        return (
            f"not explained by what is assumed (misfit {self.misfit:.1f}, limit {self.LIMIT:g}): "
            f"{self.reason}"
        )

    def but(self, contradiction: str) -> Fit:
        """The same with something that cannot be as assumed."""
        reason = contradiction if self.explained else f"{contradiction}; {self.reason}"
        return replace(self, reason=reason, contradicted=contradiction)


def fit(
    observation: Observation,
    labels: Shaped[Tensor, "B *T"] | None = None,
    *,
    clients: int = 40,
    seed: int = 0,
) -> Fit:
    """Whether a client as the attacker believes in it may have sent this update.

    Clients with stand-in images and these labels are simulated: the believed protocol, its
    defences and its noise. Each update's `Statistics` are standardised by those of all others, the
    observed one included, and the largest counts. No private image is needed, and no search.

    The stand-ins are dead leaves of random contrast and brightness. Private images of another look
    raise the misfit, hence the limit above 1.

    It says nothing about other beliefs that would leave such updates as well.

    Args:
        observation: what the attacker has, and what it believes.
        labels: of the private images. None: the granted or inferred ones. Estimated ones are
            dealt to the images at random, and a quarter of them replaced by random ones; if the
            update shows none, all are random.
        clients: number of simulated clients, at least 10.
        seed: of the stand-ins and the noise.

    Source: the comparison with simulated data is a Monte Carlo test (Barnard, 1963); to standardise
    each point by all others, full conformal prediction (Vovk et al., Algorithmic Learning in a
    Random World, 2005).

    Raises:
        InputError: fewer than 10 clients, or a replay that refuses the images.
    """
    if clients < 10:
        raise InputError(f"expected at least 10 simulated clients, got {clients}")
    rng = torch.Generator().manual_seed(seed)
    batch = observation.ledger.batch_size
    draw = _labels(observation, rng) if labels is None else lambda: labels
    noise = observation.protocol.noise(batch)
    statistics = Statistics(observation)
    with torch.no_grad():
        for _ in range(clients):
            images = stand_ins(batch, observation.ledger.image_shape, rng)
            images = images.to(observation.model.device)
            sent = observation.as_gradient(observation.replay(images, draw())).detach()
            if noise:
                sent = sent.map(lambda t: t + noise * torch.randn(t.shape, generator=rng).to(t))
            statistics.add(_shown(observation, sent))
    statistics.add(_shown(observation, observation.gradient))
    away, higher = _away(statistics.table())
    misfit, reasons = _relative(away.amax(1)), []
    doubt = _doubt(observation) if labels is None else None
    if doubt is not None:
        doubt = f"the head's gradient is not that of one image: it looks like {doubt}"
        reasons.append(doubt)
    factor = None
    if misfit > Fit.LIMIT:
        factor = _factor(statistics.table(), away, statistics.kinds)
    if factor is not None:
        reasons.append(_scaled(factor, observation))
    elif doubt is None or misfit > Fit.LIMIT:
        reasons.append(_reasons(away, higher, statistics.kinds))
    return Fit(
        misfit=misfit,
        reason="; ".join(reasons),
        clients=clients,
        factor=factor,
        contradicted=doubt,
    )


def _doubt(observation: Observation) -> str | None:
    """What the update looks like if no single image can have left it, though one is assumed."""
    ledger = observation.ledger
    if ledger.batch_size > 1 or ledger.labels is not None or ledger.attacker is not None:
        return None
    if not observation.protocol.sized or not observation.model.task(ledger.image_shape).plain:
        return None
    with suppress(ModelError):  # without a linear head
        return read_label(observation).doubt
    return None


def turned(observation: Observation, *, swapped: bool) -> Observation:
    """The observation of the negated update, as of a wrong sign.

    Args:
        observation: of the update as it was given.
        swapped: whether the update is the difference of two weights, and these are exchanged.
    """
    model, update = observation.model, observation.update
    if swapped:
        model = model.at({name: own + update[name] for name, own in model.parameters.items()})
    return replace(observation, update=-update, model=model)


def _relative(numbers: Float[Tensor, "N"]) -> float:
    """The last one, which is the observed update's, relative to the largest of the others."""
    return float(numbers[-1] / numbers[:-1].max())


def _factor(
    rows: Float[Tensor, "N K"], away: Float[Tensor, "N K"], kinds: Sequence[Kind]
) -> float | None:
    """The factor between the update and the simulated ones, if that alone is unusual.

    All other statistics do not depend on it. It has to be as constant over the tensors as between
    two simulated updates, but for the limit.
    """
    size = torch.tensor([kind.name == "size" for kind in kinds])
    ratios = rows[:, size] - rows[:-1, size].mean(0)  # logarithms
    common = ratios.median(1, keepdim=True).values
    if _relative(away[:, ~size].amax(1)) > Fit.LIMIT:
        return None
    if _relative((ratios - common).abs().amax(1)) > Fit.LIMIT:
        return None
    return math.exp(float(common[-1]))


def _scaled(factor: float, observation: Observation) -> str:
    """The factor in words."""
    batch, rate = observation.ledger.batch_size, float(observation.update.norm())
    rate /= float(observation.gradient.norm())
    causes = ["another learning rate, number of steps or optimiser"]
    if batch > 1 and _near(factor, batch):
        causes.insert(0, f"a sum instead of a mean over {batch} images")
    if rate < 1 and _near(factor, 1 / rate):
        causes.insert(0, "a change of weights that was divided by the learning rate")
    size = f"{factor:.2g} times too large" if factor > 1 else f"{1 / factor:.2g} times too small"
    return f"about {size} in all tensors: {', or '.join(causes)}"


def _near(factor: float, other: float) -> bool:
    return other / _NEAR < factor < other * _NEAR


_NEAR = 1.5
"""Up to this ratio an estimated factor may be another one: images differ in contrast."""


def _reasons(away: Float[Tensor, "N K"], higher: Tensor, kinds: Sequence[Kind]) -> str:
    """The most unusual statistic of each kind that alone would be too unusual, the surest first.

    Of an update that is explained it is the most unusual one.
    """
    found = []
    for name in Kind.WORDS:
        places = [place for place, kind in enumerate(kinds) if kind.name == name]
        if not places:
            continue
        own = away[:, places].amax(1)
        worst = places[int(away[-1, places].argmax())]
        if own[-1] > Fit.LIMIT * own[:-1].max():
            found.append(kinds[worst].told(bool(higher[-1, worst])))
    if not found:
        worst = int(away[-1].argmax())
        found.append(kinds[worst].told(bool(higher[-1, worst])))
    return "; ".join(found[:_REASONS])


def _labels(observation: Observation, rng: torch.Generator) -> Callable[[], Shaped[Tensor, "B *T"]]:
    """What draws the labels of a simulated client."""
    task = observation.model.task(observation.ledger.image_shape)
    batch, like = observation.ledger.batch_size, next(iter(observation.model.parameters.values()))
    try:
        hypotheses, source = label_hypotheses(observation)
    except (InputError, ModelError):
        return lambda: task.drawn(batch, rng, like)
    known = hypotheses[0]
    if source != "estimated":
        return lambda: known

    def draw() -> Shaped[Tensor, "B *T"]:
        dealt = known[torch.randperm(batch, generator=rng).to(known.device)]
        other = task.drawn(batch, rng, like)
        doubted = torch.rand(batch, generator=rng) < _DOUBT
        return torch.where(doubted.to(known.device), other, dealt)

    return draw


_DOUBT = 0.25
"""The share of estimated labels that is taken to be wrong."""
_REASONS = 3
_LEAST_SPREAD = 0.05
"""Added to the standard deviation: statistics of smaller differences do not count."""


def _away(rows: Float[Tensor, "N K"]) -> tuple[Float[Tensor, "N K"], Tensor]:
    """Each number's distance from the mean of the others, in their standard deviations."""
    others = len(rows) - 1
    mean = (rows.sum(0) - rows) / others
    squares = (rows.square().sum(0) - rows.square()) / others
    spread = (squares - mean.square()).clamp_min(0).sqrt() + _LEAST_SPREAD
    return (rows - mean).abs() / spread, rows > mean


def _shown(observation: Observation, gradient: Update) -> Update:
    """Without what a defence hides."""
    hidden = {name: observation.protocol.shown(name) for name in gradient}
    return Update({n: t if (mask := hidden[n]) is None else t * mask for n, t in gradient.items()})
