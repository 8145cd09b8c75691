"""`python -m pipeline` is `alasca`."""

import sys

from pipeline.cli import main

sys.exit(main())
