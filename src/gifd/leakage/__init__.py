"""Leakage: what an update shows without any search."""
