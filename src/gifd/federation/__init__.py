"""The federation: what a client really computes, and what it does to hide its batch."""
