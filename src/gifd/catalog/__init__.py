"""The catalogue: names, and what is built from them."""

from gifd.catalog.builders import attack, defense, label_estimator, label_mapping, prior, victim
from gifd.catalog.described import reference, summary
from gifd.catalog.tables import ATTACKS, BY_HAND, DEFENSES, LABELS, METRICS, PRIORS, VICTIMS

__all__ = [
    "ATTACKS",
    "BY_HAND",
    "DEFENSES",
    "LABELS",
    "METRICS",
    "PRIORS",
    "VICTIMS",
    "attack",
    "defense",
    "label_estimator",
    "label_mapping",
    "prior",
    "reference",
    "summary",
    "victim",
]
