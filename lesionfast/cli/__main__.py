"""`python -m lesionfast.cli`: the command line."""

from lesionfast.cli import main

main()
