from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_readmes_tables_are_those_of_the_result_files():
    result = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "readme.py"), "--check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
