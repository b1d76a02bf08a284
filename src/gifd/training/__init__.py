"""Training your own priors: the same StyleGAN2 that the attacks use."""

from gifd.training.card import card_path, score, write_card
from gifd.training.data import ImageSet, image_set, read_image_set
from gifd.training.recipe import Recipe
from gifd.training.remap import REMAPPER_STEPS, train_remapper
from gifd.training.run import Stand, state_path, train
from gifd.training.trainer import Losses, Trainer

__all__ = [
    "REMAPPER_STEPS",
    "ImageSet",
    "Losses",
    "Recipe",
    "Stand",
    "Trainer",
    "card_path",
    "image_set",
    "read_image_set",
    "score",
    "state_path",
    "train",
    "train_remapper",
    "write_card",
]
