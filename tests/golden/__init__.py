"""Golden numbers from reference implementations, and the tiny generators that meet them."""
