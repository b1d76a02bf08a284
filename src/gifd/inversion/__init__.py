"""The machine that searches: spaces, distances, regularisers, projections, optimisers, engine."""

from gifd.inversion.curvature import smoothed_curvature
from gifd.inversion.distances import Cosine, Distance, LayerCosine, Squared
from gifd.inversion.engine import Callback, Phase, PhaseResult, Progress, Search, search
from gifd.inversion.optimizers import (
    Adam,
    Constant,
    Optimizer,
    RandomSearch,
    Regression,
    Schedule,
    StepDecay,
    WarmupCosine,
)
from gifd.inversion.projections import L1Ball, Projection, Sphere, project_l1
from gifd.inversion.regularizers import ImageNorm, Regularizer, TotalVariation
from gifd.inversion.spaces import Feature, Latent, Pixels, Setting, Space

__all__ = [
    "Adam",
    "Callback",
    "Constant",
    "Cosine",
    "Distance",
    "Feature",
    "ImageNorm",
    "L1Ball",
    "Latent",
    "LayerCosine",
    "Optimizer",
    "Phase",
    "PhaseResult",
    "Pixels",
    "Progress",
    "Projection",
    "RandomSearch",
    "Regression",
    "Regularizer",
    "Schedule",
    "Search",
    "Setting",
    "Space",
    "Sphere",
    "Squared",
    "StepDecay",
    "TotalVariation",
    "WarmupCosine",
    "project_l1",
    "search",
    "smoothed_curvature",
]
