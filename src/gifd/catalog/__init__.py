"""The catalogue: names, and the objects that are built from them."""

from gifd.catalog.builders import (
    attack,
    defense,
    label_estimator,
    label_mapping,
    metric,
    needs_prior,
    prior,
    protocol,
    takes_public,
    victim,
)
from gifd.catalog.described import reference, summary
from gifd.catalog.protocols import PROTOCOLS
from gifd.catalog.resolver import split, told
from gifd.catalog.signatures import options
from gifd.catalog.tables import (
    ATTACKS,
    BY_HAND,
    DEFENSES,
    LABELS,
    METRICS,
    PRIORS,
    VICTIMS,
    WEIGHTS,
)

__all__ = [
    "ATTACKS",
    "BY_HAND",
    "DEFENSES",
    "LABELS",
    "METRICS",
    "PRIORS",
    "PROTOCOLS",
    "VICTIMS",
    "WEIGHTS",
    "attack",
    "defense",
    "label_estimator",
    "label_mapping",
    "metric",
    "needs_prior",
    "options",
    "prior",
    "protocol",
    "reference",
    "split",
    "summary",
    "takes_public",
    "told",
    "victim",
]
