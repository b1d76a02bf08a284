"""The search engine: objective, spaces, optimisers, initialisers, and one loop."""

from gifd.leaves import dead_leaves
from gifd.search.consensus import consensus
from gifd.search.curvature import smoothed_curvature
from gifd.search.deep_prior import DeepPrior
from gifd.search.distances import Cosine, Distance, LayerCosine, PartialMatching, Squared
from gifd.search.ensemble import Ensemble
from gifd.search.initializers import (
    Beginning,
    Carried,
    Consensus,
    Initializer,
    RankedDraws,
)
from gifd.search.inside import Inside
from gifd.search.journal import Journal
from gifd.search.learned import Learned
from gifd.search.loop import Search, search
from gifd.search.measure import Measure
from gifd.search.objective import Comparison
from gifd.search.optimizers import LBFGS, Adam, GradientRegularized, Memory, Optimizer
from gifd.search.phase import Keeps, Phase, PhaseResult
from gifd.search.population import CMAES, Population
from gifd.search.progress import Callback, Progress, planned_evaluations
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
from gifd.search.schedules import Constant, Schedule, StepDecay, WarmupCosine
from gifd.search.smoothing import smoothed_replay
from gifd.search.sources import Leaves, Public, Samples, Source
from gifd.search.spaces import Draw, Feature, Latent, Pixels, SearchContext, Space, Weights
from gifd.search.standing import Standing

__all__ = [
    "CMAES",
    "LBFGS",
    "Adam",
    "BatchNormPrior",
    "Beginning",
    "Callback",
    "Candidate",
    "Carried",
    "Chain",
    "Comparison",
    "Consensus",
    "Constant",
    "Cosine",
    "DeepPrior",
    "Distance",
    "Draw",
    "Ensemble",
    "Feature",
    "GradientRegularized",
    "GroupConsistency",
    "ImageNorm",
    "Initializer",
    "Inside",
    "Journal",
    "Keeps",
    "L1Ball",
    "Latent",
    "LatentDivergence",
    "LayerCosine",
    "Learned",
    "Leaves",
    "Measure",
    "Memory",
    "Optimizer",
    "PartialMatching",
    "Phase",
    "PhaseResult",
    "Pixels",
    "Population",
    "Progress",
    "Projection",
    "Public",
    "RankedDraws",
    "Regression",
    "Regularizer",
    "Samples",
    "Schedule",
    "Search",
    "SearchContext",
    "Source",
    "Space",
    "Sphere",
    "Squared",
    "Standing",
    "StepDecay",
    "TotalVariation",
    "WarmupCosine",
    "Weights",
    "consensus",
    "dead_leaves",
    "planned_evaluations",
    "project_l1",
    "search",
    "smoothed_curvature",
    "smoothed_replay",
]
