"""Beliefs: what may be assumed about a captured update's client, and what the update says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Shaped
from torch import Tensor

from gifd import catalog
from gifd.attacker.observation import Observation
from gifd.attacker.observe import observe
from gifd.attacker.rounds import rounds
from gifd.audit import Fit, fit, turned
from gifd.batch_norm import Statistics, passes_counted, returned_statistics
from gifd.captures import Round
from gifd.errors import GifdError, InputError, ModelError
from gifd.federation.defenses import Defense
from gifd.federation.protocols import Protocol
from gifd.federation.upload import Upload
from gifd.leakage.labels import label_hypotheses
from gifd.model import Model


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Belief:
    """An assumption about the client, and what the update says of it.

    Args:
        name: protocol and number of images.
        observation: under this assumption.
        fit: how well it explains the update.
        notes: what is said of it, a sentence each.
        refuted: whether they show another number of local steps.
    """

    name: str
    observation: Observation
    fit: Fit
    notes: tuple[str, ...]
    refuted: bool


def assumptions(protocols: Sequence[str], sizes: Sequence[int]) -> dict[str, tuple[int, Protocol]]:
    """The number of images and the protocol of every combination, by name.

    Raises:
        InputError: no such protocol.
    """
    return {
        f"{text} on {size} image{'s' if size > 1 else ''}": (
            size,
            catalog.protocol(text, images=size),
        )
        for size in sizes
        for text in protocols
    }


def judged(
    assumed: Mapping[str, tuple[int, Protocol]],
    captured: Sequence[Round],
    *,
    image_shape: tuple[int, int, int],
    labels: Shaped[Tensor, "B *T"] | None,
    defenses: Sequence[Defense],
    seed: int,
) -> list[Belief]:
    """What the update says of each assumption, the one that explains it best first.

    Raises:
        InputError: labels that are not one for each image, or an assumption that does not fit.
        ModelError: a model that does not take so few images, as batch norms in training mode.
    """
    found = []
    for name, (size, protocol) in assumed.items():
        passes = protocol.passes(size)
        _check(captured[0].model, min(passes), image_shape)
        statistics, told = _returned(captured, image_shape, passes)
        seen = [
            Upload(
                update=each.capture.update,
                model=each.model,
                protocol=protocol,
                image_shape=image_shape,
                batch_size=size,
                labels=labels,
                batch_norm=statistics[place] if statistics else None,
                batch_norm_source="batch" if statistics else None,
                defended=bool(defenses),
            )
            for place, each in enumerate(captured)
        ]
        observation = rounds([observe(upload, defenses=defenses) for upload in seen])
        fitted, counted = fit(observation, seed=seed), _counted(captured)
        refuted = counted not in ([], [len(passes)])
        if refuted:
            steps = " and ".join(map(str, counted))
            fitted = fitted.but(f"its counters say {steps} local steps, not {len(passes)}")
        found.append(
            Belief(
                name=name,
                observation=observation,
                fit=fitted,
                notes=tuple(told),
                refuted=refuted,
            )
        )
    return sorted(found, key=lambda b: (b.refuted, not b.fit.explained, b.fit.misfit))


def _check(model: Model, images: int, image_shape: tuple[int, int, int]) -> None:
    with torch.no_grad():
        model.tried(next(iter(model.parameters.values())).new_zeros(images, *image_shape))


def completed(belief: Belief, captured: Sequence[Round], seed: int) -> Belief:
    """With the likeliest label if the update does not show it, and what else may be wrong.

    If the update is not explained, or does not show the label, its negative is tried.

    Raises:
        InputError: a label that was given is none of the model's classes.
    """
    observation, notes = belief.observation, [*belief.notes, str(belief.fit)]
    given = observation.ledger.labels is not None
    if given:
        label_hypotheses(observation)
    error = _unreadable(observation)
    if error is not None or not (belief.fit.explained or belief.refuted):
        whole = all(each.before and each.capture.whole for each in captured)
        notes += _negated(belief, whole, seed)
    if error is not None and not given:
        defended = replace(observation, ledger=replace(observation.ledger, attacker="static"))
        if _unreadable(defended) is None:
            ((label,),), _ = label_hypotheses(defended)
            observation, likeliest = defended, f"; class {int(label)} is taken, the likeliest"
        else:
            likeliest = ""
        notes.append(f"the update does not show the label: {error}{likeliest}")
    return replace(belief, observation=observation, notes=tuple(notes))


def _negated(belief: Belief, whole: bool, seed: int) -> list[str]:
    """What the negated update says, if it is explained, or with given labels but for its size."""
    for swapped in (True, False) if whole else (False,):
        other = turned(belief.observation, swapped=swapped)
        found = fit(other, seed=seed)
        if found.explained and _unreadable(other) is None:
            wrong = _SWAPPED if swapped else "its sign looks wrong"
            return [f"the negated update would be explained: {wrong}"]
        known = other.ledger.labels is not None and belief.fit.factor is None
        if known and found.factor is not None and not swapped:
            also = "; whole weights are a change of weights (--protocol fedavg)" * whole
            return [f"the negated update would be explained but for its size, {found.reason}{also}"]
    return []


_SWAPPED = "before and after look swapped"


def _unreadable(observation: Observation) -> GifdError | None:
    """Why the update does not show the labels; None if it does."""
    try:
        label_hypotheses(replace(observation, ledger=replace(observation.ledger, labels=None)))
    except (InputError, ModelError) as error:
        return error
    return None


def _counted(captured: Sequence[Round]) -> list[int]:
    """The numbers of local steps that the updates' counters show, each once."""
    counts = {passes_counted(each.model, each.capture.buffers) for each in captured}
    return sorted(count for count in counts if count is not None)


def _returned(
    captured: Sequence[Round], image_shape: tuple[int, int, int], passes: Sequence[int]
) -> tuple[list[tuple[Statistics, ...]], list[str]]:
    """The batch-norm statistics of each round, if all show them, and what is said of them."""
    told = []
    for count in _counted(captured):
        if count < 0:
            told.append(f"the update's counters go back by {-count}: {_SWAPPED}")
            continue
        other = "" if count == len(passes) else f", but the protocol has {len(passes)}"
        told.append(f"the update's counters say {count} local {_steps(count)}{other}")
    if not all(each.capture.buffers for each in captured):
        return [], told
    try:
        found = [
            returned_statistics(each.model, each.capture.buffers, image_shape, passes)
            for each in captured
        ]
    except ModelError as error:
        return [], [*told, f"the returned buffers are not used: {error}"]
    batch = (
        "the means and variances of the images"
        if len(passes) == 1
        else f"weighted means, over {len(passes)} local steps, of the batches' means and variances"
    )
    told.append(
        f"the returned buffers give {batch} at {len(found[0])} batch norms: they are granted to "
        "the attack, and used where it has a term for them (gradinversion)"
    )
    return found, told


def _steps(count: int) -> str:
    return "step" if count == 1 else "steps"
