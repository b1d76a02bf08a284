"""`python -m gifd.cli`."""

from gifd.cli import main

main()
