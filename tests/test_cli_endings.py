"""How commands end when somebody stops them, or nobody takes what they print."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from commands import corepipe
from waiting import wait_until

pytestmark = pytest.mark.usefixtures("kept_costs")


def test_output_into_a_closed_pipe_is_quiet(classifier):
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "corepipe", "inspect", classifier, "--json", "-"],
        stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert (process.returncode, process.stderr) == (1, "")


@pytest.mark.parametrize("extra", [[], ["--no-cache"]])
def test_ctrl_c_while_measuring_says_how_to_go_on(extra, tmp_path, monkeypatch):
    monkeypatch.setenv("COREPIPE_CACHE", str(tmp_path))
    arguments = [sys.executable, "-m", "corepipe", "profile", "resnet50", *extra]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: psutil.Process(process.pid).children(), 60, every=0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == ""
    begun, error = err.splitlines()[-2:]  # after what may be said of the machine
    assert begun == "measuring the costs of resnet50 on this machine, for some minutes perhaps"
    assert error.startswith("error: interrupted; start again ")
    assert error.endswith("to go on from what was kept")
    assert ("without --no-cache" in error) == bool(extra)


@pytest.fixture
def fed_run(classifier, tmp_path):
    """A run that reads frames from a pipe, which is left open: the process, its results, and the frames' giver."""
    plan, fifo = tmp_path / "p.json", tmp_path / "frames"
    assert corepipe("plan", classifier, "-o", plan).returncode == 0
    os.mkfifo(fifo)
    array = io.BytesIO()
    np.save(array, np.zeros((3, 96, 96), np.float32))
    with contextlib.ExitStack() as stack:

        def start(out):
            process = subprocess.Popen(
                f"exec {sys.executable} -m corepipe run {classifier} --plan {plan} -i - -o {out} < {fifo}",
                shell=True,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.kill)
            pipe = stack.enter_context(open(fifo, "wb"))

            def feed(count):
                pipe.write(array.getvalue() * count)
                pipe.flush()

            return process, feed

        yield start


def lines_of(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_results_are_written_while_a_live_source_has_nothing(fed_run, tmp_path):
    out = tmp_path / "out.jsonl"
    process, feed = fed_run(out)
    for count in (3, 4):
        feed(1 if count == 4 else 3)
        wait_until(lambda count=count: lines_of(out) == count, 60, every=0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "4 frames in" in err
    assert lines_of(out) == 4


def test_ctrl_c_while_the_program_is_imported_needs_no_traceback():
    script = """
import sys

class Stop:
    def find_spec(self, name, *_):
        if name == "corepipe.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Stop())
from corepipe.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def wait_until_idle(process, seconds):
    """Until its workers have done something, if only to start, and then nothing for three seconds."""
    used = [0.0] * 4

    def rested():
        used.append(sum(child.cpu_times().user for child in psutil.Process(process.pid).children()))
        return len(set(used[-4:])) == 1 and used[-1] > 0

    wait_until(rested, seconds, every=1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_who_stops_a_run_keeps_the_results_so_far(fed_run, tmp_path, number, code):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests run where this signal is ignored, as under nohup")
    out = tmp_path / "out.npz"
    process, feed = fed_run(out)
    feed(30)
    wait_until_idle(process, 60)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "interrupted: the results so far are written" in err
    with np.load(out) as results:
        assert len(results["frame_names"]) == 30


def test_more_files_are_asked_for_where_few_are_allowed():
    code = (
        "import resource; from corepipe import cli; cli._allow_more_files(); "
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    command = shlex.join([sys.executable, "-c", code])
    done = subprocess.run(["sh", "-c", f"ulimit -S -n 300; exec {command}"], stdout=subprocess.PIPE)
    soft, hard = map(int, done.stdout.split())
    assert soft == (8192 if hard < 0 else min(8192, hard))


def test_no_file_takes_the_number_of_a_closed_standard_stream():
    """A worker would find nothing in it: its own standard streams lead nowhere."""
    code = "import os; from corepipe import cli; cli._fill_standard_descriptors(); print(os.open(os.devnull, 0))"
    done = subprocess.run(
        f"{sys.executable} -c {shlex.quote(code)} <&- 2>&-", shell=True, stdout=subprocess.PIPE, text=True
    )
    assert int(done.stdout) > 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_outputs_that_take_nothing(classifier, photos, tmp_path):
    command = [sys.executable, "-m", "corepipe"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        for env in (buffered, buffered | {"PYTHONUNBUFFERED": "1"}):
            inspect = [*command, "inspect", classifier]
            done = subprocess.run(inspect, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
            assert done.returncode == 1
            assert "No space left on device" in done.stderr
            assert "bug" not in done.stderr
            assert "Exception" not in done.stderr
        out = tmp_path / "out.jsonl"
        done = subprocess.run([*command, "run", classifier, "-i", photos, "-o", out], stderr=full)
        assert done.returncode == 0
        assert lines_of(out) == 3
    closed = subprocess.run(
        f"{shlex.join(command)} run {classifier} -i {photos} >&-", shell=True, stderr=subprocess.PIPE, text=True
    )
    assert "the standard output is closed" in closed.stderr
    closed = subprocess.run(
        f"{shlex.join(command)} inspect {classifier} --json - >&-", shell=True, stderr=subprocess.PIPE, text=True
    )
    assert "the standard output is closed" in closed.stderr
    ascii_only = subprocess.run(
        [*command, "plan", classifier], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert ascii_only.returncode == 0, ascii_only.stderr
