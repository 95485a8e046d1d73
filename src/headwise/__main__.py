"""Run `python -m headwise`."""

import sys

from headwise.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
