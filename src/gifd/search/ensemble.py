"""Ensemble: learn the way from updates to images on an ensemble of images."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gifd.errors import InputError
from gifd.priors.generator import State
from gifd.search.choice import chosen
from gifd.search.following import following
from gifd.search.initializers import Beginning, Initializer
from gifd.search.kernel_ridge import KernelRidge
from gifd.search.signatures import Signatures, away
from gifd.search.sources import Leaves, Source
from gifd.search.spaces import Pixels
from gifd.search.standing import Standing, apart, flat

_log = logging.getLogger("gifd")


@final
@dataclass(frozen=True, kw_only=True)
class Ensemble(Initializer):
    """Begin at what a regression from updates to images says of the observed update.

    It is fitted to the updates of an ensemble of images, so it needs first derivatives only. What
    autograd does not see, the flips of ReLUs, is in the differences between the members.

    - The first round learns from images of `source`. Their leave-one-out residuals, `deviations`,
      have the shape of the errors that are left.
    - Each further round (`around`) learns from `guess + s * deviations`: around the present
      state's images a straight line fits better. s is the least of `SPREADS` at which the members'
      updates are as far from the guess's as the observed update is.

    The images of a batch are predicted together, in the order of the guess.

    A first-order pass takes about a third of a victim gradient, so three members are charged as
    one evaluation.

    Args:
        evaluations: a third of the number of passes.
        source: of the first round's images.
        around: whether it is a further round.
        fit: steps of Adam towards the prediction, in a space other than `Pixels`.
        lr: their learning rate.

    Source: ours; the ensemble in place of derivatives, and the repetition, are those of ensemble
    Kalman inversion: Iglesias, Law and Stuart, Ensemble Kalman Methods for Inverse Problems,
    Inverse Problems 2013. Learning to invert on own data is due to Wu et al., UAI 2023.
    """

    evaluations: int = 333
    source: Source = Leaves()
    around: bool = False
    fit: int = 80
    lr: float = 0.05

    PASSES: ClassVar[int] = 3
    """Passes per evaluation."""
    FEWEST: ClassVar[int] = 6
    """Members; with fewer the searches stay where they are."""
    SPREADS: ClassVar[tuple[float, ...]] = (0.18, 0.25, 0.35, 0.5, 0.7, 1.0)
    PROBES: ClassVar[int] = 5
    """Members at most whose updates are measured at each spread."""
    STARTS: ClassVar[int] = 8
    """Draws of a latent from which the first round's prediction is followed."""
    SIZE: ClassVar[int] = 16
    """Side to which images are averaged down where settings are chosen by their errors."""

    def __post_init__(self) -> None:
        if self.evaluations < 1 or self.fit < 1 or not self.lr > 0:
            raise InputError(
                "expected an ensemble with evaluations >= 1, fit >= 1 and lr > 0, got "
                f"{self.evaluations}, {self.fit} and {self.lr}"
            )

    def at_cost(self, evaluations: int) -> Initializer:
        """With this many evaluations; at least one."""
        return replace(self, evaluations=max(1, evaluations))

    def __call__(self, beginning: Beginning) -> Standing:
        """The searches at the states that show what is predicted.

        Raises:
            InputError: a further round without a first one.
        """
        standing = beginning.entered(beginning.before)
        if self.PASSES * self.evaluations < self.FEWEST:
            return standing
        with torch.no_grad():
            guesses = beginning.space.pictures(beginning.context, flat(standing.state))
        guesses = guesses.clamp(0, 1).view(*standing.alive.shape, *guesses.shape[1:])
        goals, notes = torch.empty_like(guesses), []
        for n, r in torch.cartesian_prod(*map(torch.arange, standing.alive.shape)).tolist():
            labels, rng = standing.labels[n, r], beginning.draws[n].rng
            signatures = Signatures(beginning.observations[n], labels, rng)
            if self.around:
                past = standing.notes.get("deviations")
                if past is None:
                    raise InputError("expected a first round before a round around its guess")
                guess, deviations = self._further(signatures, guesses[n, r], past[n, r], rng)
            else:
                guess, deviations = self._first(beginning, signatures, rng)
            goals[n, r] = guess.clamp(0, 1)
            notes.append(deviations)
        kept = torch.stack(notes).view(*standing.alive.shape, *notes[0].shape)
        state = self._shown(beginning, flat(standing.state), goals.flatten(0, 1))
        return replace(
            standing, state=apart(state, len(standing.alive)), notes={"deviations": kept}
        )

    def _first(
        self, beginning: Beginning, signatures: Signatures, rng: torch.Generator
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "M B C H W"]]:
        context, members = beginning.context, self.PASSES * self.evaluations
        images = self.source(context, members * context.batch, rng)
        images = images.view(members, context.batch, *images.shape[1:])
        return self._predicted(signatures, images, rng)

    def _further(
        self,
        signatures: Signatures,
        guess: Float[Tensor, "B C H W"],
        deviations: Float[Tensor, "K B C H W"],
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "K B C H W"]]:
        passes = self.PASSES * self.evaluations
        probes = min(self.PROBES, passes // (4 * len(self.SPREADS)))
        spread = self._spread(signatures, guess, deviations, probes, rng)
        members = passes - (probes * len(self.SPREADS) + 1 if probes else 0)
        rounds = -(-members // len(deviations))
        order = [torch.randperm(len(deviations), generator=rng) for _ in range(rounds)]
        own = deviations[torch.cat(order)[:members].to(deviations.device)]
        found, _ = self._predicted(signatures, (guess + spread * own).clamp(0, 1), rng)
        return found, deviations

    def _predicted(
        self, signatures: Signatures, images: Float[Tensor, "M B C H W"], rng: torch.Generator
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "M B C H W"]]:
        """The private images, and the members' residuals."""
        batch = images.shape[1:]
        side = (min(self.SIZE, batch[-2]), min(self.SIZE, batch[-1]))
        judged = F.adaptive_avg_pool2d(images.flatten(0, 1), side).view(len(images), -1)
        ridge = KernelRidge.fit(signatures(images), images.flatten(1), judged)
        _log.debug(
            "ensemble: %d members, from weight %d on, leave-one-out error %.4f",
            len(images),
            ridge.first,
            float(ridge.residuals.square().mean().sqrt()),
        )
        return ridge(signatures.observed).view(batch), ridge.residuals.view(images.shape)

    def _spread(
        self,
        signatures: Signatures,
        guess: Float[Tensor, "B C H W"],
        deviations: Float[Tensor, "K B C H W"],
        probes: int,
        rng: torch.Generator,
    ) -> float:
        """The least spread at which members are as far from the guess as the observed update."""
        if probes == 0:
            return self.SPREADS[-1]
        taken = deviations[torch.randperm(len(deviations), generator=rng)[:probes]]
        (own,) = zip(*signatures(guess[None]), strict=True)
        wanted = away(own, signatures.observed, signatures.observed)
        for spread in self.SPREADS:
            members = signatures((guess + spread * taken).clamp(0, 1))
            far = [away(each, own, signatures.observed) for each in zip(*members, strict=True)]
            if sum(far) / len(far) >= wanted:
                break
        _log.debug("ensemble: spread %.2f", spread)
        return spread

    def _shown(
        self, beginning: Beginning, state: State, goals: Float[Tensor, "S B C H W"]
    ) -> State:
        """The states that show these images, or nearly."""
        space, context = beginning.space, beginning.context

        def follow(state: State) -> State:
            return following(space, context, state, goals, steps=self.fit, lr=self.lr)

        if self.around or isinstance(space, Pixels):
            return follow(state)
        images = len(beginning.observations)

        def error(state: State) -> Float[Tensor, "N R"]:
            with torch.no_grad():
                shown = space.pictures(context, state)
            return (shown - goals).square().flatten(1).mean(1).view(images, -1)

        best = follow(state)
        least, best = error(best), apart(best, images)
        for _ in range(self.STARTS - 1):
            tried = follow(flat(beginning.drawn()))
            own, found = error(tried), apart(tried, images)
            nearer = own < least
            least = torch.minimum(own, least)
            best = {name: chosen(nearer, found[name], tensor) for name, tensor in best.items()}
        return flat(best)
