"""`python -m hookline_service` is `hookline`."""

import sys

from hookline_service.cli import main

if __name__ == "__main__":
    sys.exit(main())
