"""The attacker: what it observes of an upload, and what it believes about its computation."""
