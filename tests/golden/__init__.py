"""Golden numbers from reference implementations, and the tiny generators to compare."""
