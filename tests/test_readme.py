"""Every figure in the README is what the JSON under bench/results says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_tables_are_generated():
    result = subprocess.run([sys.executable, str(ROOT / "bench" / "readme.py"), "--check"], check=False)
    assert result.returncode == 0, "run `python bench/readme.py`"
