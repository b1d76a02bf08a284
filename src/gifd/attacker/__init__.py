"""The attacker: what a server holds, and what it believes of how that came about."""
