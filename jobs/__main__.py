"""``python -m jobs JOB ...`` is ``herd JOB ...``."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
