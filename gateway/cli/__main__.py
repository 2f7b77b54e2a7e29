"""`python -m gateway.cli`: the same as `outlast`."""

import sys

from gateway.cli import main

sys.exit(main())
