"""`python -m deepsched` is the command line, as `deepsched` is."""

import sys

from deepsched.cli import main

if __name__ == "__main__":
    sys.exit(main())
