"""The audit: what can be said about an update and an attack without the private images."""

from gifd.audit.fit import Fit, fit, turned
from gifd.audit.nulls import null_distances

__all__ = ["Fit", "fit", "null_distances", "turned"]
