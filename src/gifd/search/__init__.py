"""The machine that searches: spaces, distances, regularisers, projections, optimisers, engine."""

from gifd.search.cmaes import CMAES
from gifd.search.comparison import Comparison
from gifd.search.curvature import smoothed_curvature
from gifd.search.deep_prior import DeepPrior
from gifd.search.distances import Cosine, Distance, LayerCosine, PartialMatching, Squared
from gifd.search.engine import Callback, Progress, Search, search
from gifd.search.measure import Measure
from gifd.search.optimizers import (
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
from gifd.search.phase import Keeps, Phase, PhaseResult
from gifd.search.projections import Chain, L1Ball, Projection, Sphere, project_l1
from gifd.search.regression import Regression
from gifd.search.regularizers import (
    BatchNormPrior,
    Candidate,
    GroupConsistency,
    ImageNorm,
    LatentDivergence,
    Regularizer,
    TotalVariation,
)
from gifd.search.smoothing import smoothed_replay
from gifd.search.spaces import Feature, Latent, Pixels, Setting, Space, Weights

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
