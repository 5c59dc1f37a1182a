"""Commands as a user runs them, in processes of their own."""

import subprocess
import sys


def corepipe(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "corepipe", *map(str, arguments)], capture_output=True, text=True, timeout=100, **options
    )


def one_message(result, code):
    """The single message of a failed command."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    return lines[0]
