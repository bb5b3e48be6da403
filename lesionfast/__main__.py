"""`python -m lesionfast`: the command line."""

from lesionfast.cli import main

main()
