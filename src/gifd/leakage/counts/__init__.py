"""Label counts: how often each class is in a batch, from the gradient of the head.

With p the softmax of an image's logits, S the sum of the head's input, and c_i of B images with
label i, the mean gradient of cross-entropy is, for each class,

    bias:         b_i = mean p_i - c_i / B
    weight's row: g_i = mean (p_i - [y = i]) S

Every estimator but one solves one of the two for c. They differ in how they estimate p and S.
`ClassMeans` needs no head.
"""

from gifd.leakage.counts.class_means import ClassMeans
from gifd.leakage.counts.estimate import LabelEstimate
from gifd.leakage.counts.estimators import (
    AuxiliaryLeastSquares,
    ClassEmbeddings,
    Distinct,
    DummyMean,
    Impact,
    LabelEstimator,
)
from gifd.leakage.counts.head_gradient import HeadGradient

__all__ = [
    "AuxiliaryLeastSquares",
    "ClassEmbeddings",
    "ClassMeans",
    "Distinct",
    "DummyMean",
    "HeadGradient",
    "Impact",
    "LabelEstimate",
    "LabelEstimator",
]
