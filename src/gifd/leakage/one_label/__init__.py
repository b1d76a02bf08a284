"""The label of one image, read off the head's gradient, and whether one image left it."""

from gifd.leakage.one_label.reading import Reading, read_label

__all__ = ["Reading", "read_label"]
