"""Run the command line from a checkout: `python cli.py train` is `lesionfast train`."""

from lesionfast.cli import main

if __name__ == "__main__":
    main()
