"""Entry point of ``python -m benchmarks.throughput``."""

import sys

from benchmarks.throughput.run import main

if __name__ == "__main__":
    sys.exit(main())
