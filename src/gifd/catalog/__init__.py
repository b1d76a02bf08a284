"""The catalogue: names, and what is built from them."""

from gifd.catalog.builders import attack, label_estimator, label_mapping, prior, victim
from gifd.catalog.tables import ATTACKS, BY_HAND, LABELS, METRICS, PRIORS, VICTIMS

__all__ = [
    "ATTACKS",
    "BY_HAND",
    "LABELS",
    "METRICS",
    "PRIORS",
    "VICTIMS",
    "attack",
    "label_estimator",
    "label_mapping",
    "prior",
    "victim",
]
