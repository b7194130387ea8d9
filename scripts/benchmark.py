"""Measure this project beside other U-Nets, in turns on the same machine: python scripts/benchmark.py train."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is not installed

from benchmarks.command import main

if __name__ == "__main__":
    main()
