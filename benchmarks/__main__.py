"""python -m benchmarks: the main benchmark, see `benchmarks.serving.command`."""

import sys

from benchmarks.serving.command import main

sys.exit(main())
