"""`python -m gifd`: the command line."""

from gifd.cli import main

main()
