"""`python -m evals.claims`."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the servers beside it have the other cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from evals.claims.command import main

sys.exit(main())
