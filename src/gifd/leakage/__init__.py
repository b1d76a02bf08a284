"""Leakage: what an update shows without any search.

Labels (`labels`, `one_label`, `counts`) and the input of the head (`representation`).
"""

from gifd.leakage.labels import infer_label, label_hypotheses
from gifd.leakage.one_label import Reading, read_label
from gifd.leakage.representation import Observed, observed_representations, representations

__all__ = [
    "Observed",
    "Reading",
    "infer_label",
    "label_hypotheses",
    "observed_representations",
    "read_label",
    "representations",
]
