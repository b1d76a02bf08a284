"""The federation: what a client computes and uploads, and how it hides its batch."""
