from __future__ import annotations

import io
import json
import os
import re
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
from rich.console import Console

from corepipe.report.doctor import (
    Check,
    SystemState,
    check_pinning,
    check_realtime,
    doctor_json,
    doctor_warnings,
    examine,
    render_doctor,
    sample_busy,
)
from corepipe.topology import Cache, Cluster, Core, Topology, detect

CHIP = Topology(
    clusters=(
        Cluster(
            "big",
            (Core((4, 5), 0, (4, 5)), Core((6, 7), 0, (6, 7))),
            core_name="Cortex-A76",
            max_mhz=2400.0,
            current_mhz=600.4,
            governor="schedutil",
            caches=(Cache(1, 65536, 1), Cache(3, 3 * 2**20, 8)),
        ),
        Cluster("little", (Core((0,)),), capacity=0.45),
    ),
    machine="Board [bold]X[/nonsense]",
    hidden=("CPUs 1-3: offline",),
    warnings=("CPUs 1-3 offline: fewer cores",),
    quota_cpus=1.5,
)
STATE = SystemState(
    pinning=Check(True),
    realtime=Check(False, "Operation not permitted"),
    huge_pages=Check(False, "the system gives none"),
    engines={"onnxruntime": "1.32.0"},
    busy={0: 0.01, 4: 0.5},
    sample_s=0.3,
)


def rendered(topology, state=STATE):
    stream = io.StringIO()
    render_doctor(topology, Console(file=stream, width=160), state)
    return stream.getvalue()


def test_an_emulation_is_not_taken_for_other_programs_alone():
    (busy,) = [w for w in doctor_warnings(CHIP, STATE) if "busy" in w]
    (slowed,) = [w for w in doctor_warnings(replace(CHIP, emulated=True), STATE) if "busy" in w]
    assert "up to 50%)" in busy
    assert "up to 50%; the work that slows cores here counts too)" in slowed


def test_everything_is_shown():
    text = rendered(CHIP)
    for part in (
        "Board [bold]X[/nonsense]",
        "4-7 (2 a core)",
        "Cortex-A76",
        "0.45",
        "2400",
        "600",
        "schedutil",
        "L1 64 KiB, L3 3 MiB / 8 CPUs",
        "3 cores: CPUs 0,4-7",
        "CPUs 1-3: offline",
        "1.5 CPUs",
        "not used: the system gives none",
        "onnxruntime 1.32.0",
        "no `corepipe emulate` here: Operation not permitted",
        "! CPUs 1-3 offline",
        "! CPU 4 is busy with other work (up to 50%)",
    ):
        assert part in text
    assert "nothing found" not in text


def test_nothing_to_warn_of():
    state = SystemState(Check(True), Check(True), Check(True), {"onnxruntime": "1"})
    text = rendered(Topology((Cluster("cpu", (Core((0,)),)),)), state)
    assert "nothing found that would spoil a measurement" in text
    assert "1 core: CPU 0" in text


def test_warnings_of_the_state():
    state = SystemState(Check(False, "CPU 0: no"), Check(True), Check(True), {"onnxruntime": None})
    warnings = doctor_warnings(Topology((Cluster("cpu", (Core((0,)),)),)), state)
    assert any("cannot be kept on their cores (CPU 0: no)" in w for w in warnings)
    assert any("no engine is installed" in w for w in warnings)


def test_json():
    data = json.loads(json.dumps(doctor_json(CHIP, STATE), allow_nan=False))
    assert data["command"] == "doctor"
    assert data["busy_percent"] == {"0": 1.0, "4": 50.0}
    big = data["topology"]["clusters"][0]
    assert big["max_mhz"] == 2400
    assert big["cores"][1] == {"id": 6, "cpus": [6, 7], "package": 0, "siblings": [6, 7]}
    assert big["caches"][1] == {"level": 3, "size_bytes": 3 * 2**20, "shared_by_cpus": 8}
    assert data["topology"]["fingerprint"] == CHIP.fingerprint()
    assert data["realtime"] == {"works": False, "reason": "Operation not permitted"}
    assert len(data["warnings"]) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads this machine's sysfs")
def test_this_machine():
    before, policy = os.sched_getaffinity(0), os.sched_getscheduler(0)
    topology = detect()
    state = examine(topology, sample_s=0.05)
    assert state.pinning == Check(True)
    assert state.engines["onnxruntime"]
    assert set(state.busy) <= set(topology.cpus)
    assert all(0 <= share <= 1 for share in state.busy.values())
    assert (os.sched_getaffinity(0), os.sched_getscheduler(0)) == (before, policy)
    assert re.search(r"cpu|big", rendered(topology, state))


def test_a_machine_that_is_not_at_hand_is_not_examined():
    topology = Topology((Cluster("cpu", (Core((0,)),)),), pinnable=False)
    state = examine(topology, sample_s=0)
    assert not state.pinning.works
    assert state.busy == {}
    assert doctor_warnings(topology, state) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks on this system")
def test_pinning_to_a_cpu_that_does_not_exist():
    check = check_pinning(Topology((Cluster("cpu", (Core((60000,)),)),)))
    assert not check.works
    assert check.reason.startswith("CPU 60000:")


def test_realtime_refused(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    monkeypatch.setattr(os, "sched_param", lambda priority: priority, raising=False)
    monkeypatch.setattr(os, "SCHED_FIFO", 1, raising=False)
    check = check_realtime()
    assert not check.works
    assert "CAP_SYS_NICE" in check.reason


def test_busy_share(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    stat.write_text("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 100 0 0 900 0 0 0 0 50 0\ncpu3 0 0 0 0 0 0 0 0 0 0\nctxt 5\n")
    later = "cpu  1\ncpu0 120 0 5 960 10 0 0 5 90 0\ncpu3 0 0 0 0 0 0 0 0 0 0\ncpux 1 2 3 4\n\n"
    monkeypatch.setattr("time.sleep", lambda _: stat.write_text(later))
    assert sample_busy(0.3, stat) == {0: pytest.approx(0.3)}
    assert sample_busy(0.3, tmp_path / "none") == {}


def test_other_builds_of_an_engine_count(monkeypatch):
    def version(distribution):
        if distribution == "onnxruntime-gpu":
            return "1.30.0"
        raise PackageNotFoundError(distribution)

    monkeypatch.setattr("corepipe.api.version", version)
    assert examine(CHIP, sample_s=0).engines == {"onnxruntime": "1.30.0", "openvino": None, "ncnn": None}
