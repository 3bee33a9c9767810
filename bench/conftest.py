"""Benchmarks of an op take its case from the op's tests."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS / "ops"), str(TESTS)]
