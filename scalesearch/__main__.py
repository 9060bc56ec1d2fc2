"""`python -m scalesearch`."""

from __future__ import annotations

import sys

from scalesearch.cli import main

if __name__ == "__main__":
    sys.exit(main())
