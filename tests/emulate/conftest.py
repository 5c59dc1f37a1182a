"""What the tests that slow a core for real share."""

from __future__ import annotations

import subprocess
import sys

import pytest

from corepipe.topology import detect


@pytest.fixture(scope="module")
def cpu() -> int:
    """A CPU to slow; skips where that is not allowed."""
    if not sys.platform.startswith("linux"):
        pytest.skip("cores can be slowed on Linux only")
    script = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))"
    if subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, check=False).returncode:
        pytest.skip("no right to real-time scheduling here")
    topology = detect()
    if topology.emulated:
        pytest.skip("some core of this machine is slowed already")
    return max(core.id for core in topology.cores)
