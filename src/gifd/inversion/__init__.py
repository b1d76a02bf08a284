"""The machine that searches: spaces, distances, regularisers, projections, optimisers, engine."""

from gifd.inversion.cmaes import CMAES
from gifd.inversion.comparison import Comparison
from gifd.inversion.curvature import smoothed_curvature
from gifd.inversion.deep_prior import DeepPrior
from gifd.inversion.distances import Cosine, Distance, LayerCosine, PartialMatching, Squared
from gifd.inversion.engine import Callback, Progress, Search, search
from gifd.inversion.measure import Measure
from gifd.inversion.optimizers import (
    LBFGS,
    Adam,
    Constant,
    GradientRegularized,
    Optimizer,
    RandomSearch,
    Schedule,
    StepDecay,
    WarmupCosine,
)
from gifd.inversion.phase import Keeps, Phase, PhaseResult
from gifd.inversion.projections import Chain, L1Ball, Projection, Sphere, project_l1
from gifd.inversion.regression import Regression
from gifd.inversion.regularizers import (
    BatchNormPrior,
    Candidate,
    GroupConsistency,
    ImageNorm,
    LatentDivergence,
    Regularizer,
    TotalVariation,
)
from gifd.inversion.smoothing import smoothed_replay
from gifd.inversion.spaces import Feature, Latent, Pixels, Setting, Space, Weights

__all__ = [
    "CMAES",
    "LBFGS",
    "Adam",
    "BatchNormPrior",
    "Callback",
    "Candidate",
    "Chain",
    "Comparison",
    "Constant",
    "Cosine",
    "DeepPrior",
    "Distance",
    "Feature",
    "GradientRegularized",
    "GroupConsistency",
    "ImageNorm",
    "Keeps",
    "L1Ball",
    "Latent",
    "LatentDivergence",
    "LayerCosine",
    "Measure",
    "Optimizer",
    "PartialMatching",
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
    "Weights",
    "project_l1",
    "search",
    "smoothed_curvature",
    "smoothed_replay",
]
