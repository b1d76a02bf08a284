"""The audit: what can be said about an update and an attack without the private images."""

from gifd.audit.fit import Fit, fit

__all__ = ["Fit", "fit"]
