"""Words that files of former versions hold, and what they are now."""

ATTACKERS = {"naive": "static", "told": "adaptive"}
"""Of what an attacker knows of the defences (`gifd.attacker.observe`)."""
