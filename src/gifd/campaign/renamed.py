"""Former names in files and options, and the present ones."""

ATTACKERS = {"naive": "static", "told": "adaptive"}
"""Former name of an attacker -> present name (`gifd.attacker.observe`)."""
