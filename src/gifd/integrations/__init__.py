"""Integrations: gifd inside other people's federations. Each needs an extra."""
