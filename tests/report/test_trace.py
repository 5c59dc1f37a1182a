from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from corepipe.errors import DocumentError, PlanError
from corepipe.plan.model import Hop, Plan, PlanNetwork, Route, Worker
from corepipe.report.frequency import MAX_SAMPLES, CounterSample, FrequencySampler
from corepipe.report.life import hops_done, segment_name, shorten, waits
from corepipe.report.recording import LeftOut, Recording
from corepipe.report.trace import TracedPlan, write_trace, write_traces
from corepipe.runtime.record import FrameRecord, HopTime

LAYERS = ("conv1", "pool1", "<script>alert(1)</script>", "fc")
PLAN = Plan(
    planner="routes",
    network=PlanNetwork(name="net", sha256="0" * 64, layers=4),
    workers=(Worker(name="big1", config="big1", cores=(4,)), Worker(name="little2", config="little2", cores=(0, 1))),
    routes=(
        Route(rate_fps=10, hops=(Hop(worker="big1", layers=(0, 3)), Hop(worker="little2", layers=(3, 4)))),
        Route(rate_fps=5, hops=(Hop(worker="little2", layers=(0, 4)),)),
    ),
)
MS = 1_000_000
START = 7_000 * MS
SHAPES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "M": {"pid": int, "tid": int, "name": str, "args": dict},
    "X": {"pid": int, "tid": int, "name": str, "ts": (int, float), "dur": (int, float), "cat": str, "args": dict},
    "b": {"pid": int, "tid": int, "name": str, "ts": (int, float), "cat": str, "id2": dict},
    "e": {"pid": int, "tid": int, "name": str, "ts": (int, float), "cat": str, "id2": dict},
    "C": {"pid": int, "name": str, "ts": (int, float), "args": dict},
    "i": {"pid": int, "tid": int, "name": str, "ts": (int, float), "s": str},
}


def record(
    frame: int, route: int, submitted: float, *hops: tuple[float, float], done: float | None = None
) -> FrameRecord:
    """A frame with times in ms."""

    def ns(ms: float) -> int:
        return START + round(ms * MS)

    times = tuple(
        HopTime(h.worker, h.start, h.stop, ns(a), ns(b))
        for h, (a, b) in zip(PLAN.routes[route].hops, hops, strict=True)
    )
    return FrameRecord(frame, route, ns(submitted), ns(hops[-1][1] + 0.1 if done is None else done), times)


RECORDS = [
    record(0, 0, 0, (1, 11), (12, 15)),
    record(1, 0, 0.5, (11, 21), (25, 28)),
    record(2, 1, 1, (15, 25)),
    record(3, 0, 16, (21, 31), (32, 35)),
]


def load(path: Path) -> list[dict[str, Any]]:
    """The events, each checked against the trace event format."""
    data = json.loads(path.read_text())
    assert set(data) == {"displayTimeUnit", "otherData", "traceEvents"}
    for event in data["traceEvents"]:
        for key, kind in SHAPES[event["ph"]].items():
            assert isinstance(event[key], kind), event
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values())
    return list(data["traceEvents"])


def of(events: list[dict[str, Any]], phase: str, **wanted: Any) -> list[dict[str, Any]]:
    return [e for e in events if e["ph"] == phase and all(e.get(k) == v for k, v in wanted.items())]


def check_nesting(events: list[dict[str, Any]]) -> None:
    """Async events of an id open and close like brackets, in the order of time."""
    open_: dict[Any, list[str]] = defaultdict(list)
    last: dict[Any, float] = defaultdict(float)
    for event in events:
        if event["ph"] in "be":
            lane = (event["pid"], event["cat"], event["id2"]["local"])
            assert event["ts"] >= last[lane]
            last[lane] = event["ts"]
            if event["ph"] == "b":
                open_[lane].append(event["name"])
            else:
                assert open_[lane].pop() == event["name"]
    assert not any(open_.values())


def test_a_slice_per_hop_on_the_track_of_its_worker(tmp_path: Path) -> None:
    summary = write_trace(tmp_path / "t.json", RECORDS, PLAN, simulated=False, layers=LAYERS)
    events = load(tmp_path / "t.json")
    check_nesting(events)
    names = {e["tid"]: e["args"]["name"] for e in of(events, "M", name="thread_name")}
    assert sorted(names.values()) == ["big1 (core 4)", "little2 (cores 0,1)"]
    slices = [(names[e["tid"]], e["name"], e["ts"], e["dur"], e["args"]["frame"]) for e in of(events, "X")]
    assert ("big1 (core 4)", "layers 0-2: conv1 .. <script>alert(1)</script>", 1000, 10_000, 0) in slices
    assert ("little2 (cores 0,1)", "layer 3: fc", 25_000, 3000, 1) in slices
    assert ("little2 (cores 0,1)", "layers 0-3: conv1 .. fc", 15_000, 10_000, 2) in slices
    assert len(slices) == 7
    assert of(events, "X")[0]["args"] == {"frame": 0, "route": 0, "layers": [0, 3]}
    assert [e["args"]["name"] for e in of(events, "M", name="process_name")] == ["routes (measured)"]
    assert summary.frames == {"routes": 4}
    assert summary.describe() == "frames in the trace: 4"


def test_lives_of_frames_and_flows(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", RECORDS, PLAN, simulated=False)
    events = load(tmp_path / "t.json")
    lives = [e for e in of(events, "b") if e["name"].startswith("frame")]
    assert [(e["args"]["frame"], e["ts"], e["name"]) for e in lives] == [
        (0, 0, "frame on route 0"),
        (1, 500, "frame on route 0"),
        (2, 1000, "frame on route 1"),
        (3, 16_000, "frame on route 0"),
    ]
    assert lives[0]["args"]["latency_ms"] == pytest.approx(15.1)
    lanes = [e["id2"]["local"] for e in lives]
    assert lanes == ["0.1", "0.2", "1.1", "0.1"], "a lane is used again once its frame is done"
    inner = [e["name"] for e in of(events, "b", id2={"local": "0.2"})]
    assert inner == ["frame on route 0", "waits for big1", "on big1", "waits for little2", "on little2"]
    first, second = (e for e in of(events, "X") if e["args"]["frame"] == 0)
    assert (first["flow_out"], first["flow_in"], second["flow_out"], second["flow_in"]) == (True, False, False, True)
    assert first["bind_id"] == second["bind_id"]
    assert all("bind_id" not in e for e in of(events, "X") if e["args"]["route"] == 1)


def test_queue_depths(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", RECORDS, PLAN, simulated=False)
    events = load(tmp_path / "t.json")
    flight = [(e["ts"], e["args"]["[frames]"]) for e in of(events, "C", name="in flight")]
    assert flight == [(0, 1), (500, 2), (1000, 3), (15_100, 2), (16_000, 3), (25_100, 2), (28_100, 1), (35_100, 0)]
    waiting = [(e["ts"], e["args"]["[frames]"]) for e in of(events, "C", name="waiting for big1")]
    assert waiting == [(0, 1), (500, 2), (1000, 1), (11_000, 0), (16_000, 1), (21_000, 0)]


def test_frequency_and_other_counters_within_the_time_of_the_frames(tmp_path: Path) -> None:
    counters = [CounterSample("cpu4", "MHz", START + at * MS, 1000.0 + at) for at in (-5, 0, 10, 99)]
    write_trace(tmp_path / "t.json", RECORDS, PLAN, simulated=False, counters=counters)
    events = load(tmp_path / "t.json")
    samples = [(e["ts"], e["args"]) for e in of(events, "C", name="cpu4")]
    assert samples == [(0, {"[MHz]": 1000}), (10_000, {"[MHz]": 1010})]


def test_a_long_run_is_cut_and_says_so(tmp_path: Path) -> None:
    summary = write_trace(tmp_path / "t.json", RECORDS, PLAN, simulated=False, max_frames=2)
    events = load(tmp_path / "t.json")
    assert {e["args"]["frame"] for e in of(events, "X")} == {0, 1}
    assert summary.dropped == {"routes": LeftOut(2, 2, 3)}
    assert "2 later ones of routes left out (frames 2 to 3)" in summary.describe()
    assert json.loads((tmp_path / "t.json").read_text())["otherData"]["contents"] == summary.describe()
    assert [e["name"] for e in of(events, "i")] == ["2 later frames left out (2 to 3)"]
    depths = [e["args"]["[frames]"] for e in of(events, "C", name="in flight")]
    assert max(depths) == 3, "frames that are left out still count in the queues"


def recorded(count: int, max_frames: int) -> Recording:
    """A run of frames on one worker, each submitted when the one two before it is done, ended in pairs out of order."""
    recording = Recording(max_frames)
    for pair in range(0, count, 2):
        for frame in (pair + 1, pair):
            recording.add(record(frame, 1, 10 * (frame - 1), (10 * frame, 10 * frame + 9), done=10 * frame + 9.5))
    return recording


def test_a_recording_keeps_the_first_frames_and_counts_the_rest() -> None:
    recording = recorded(1000, max_frames=100)
    kept = sorted(r.frame for r in recording.records)
    assert kept[:100] == list(range(100))
    assert len(kept) <= 102
    assert recording.left_out == LeftOut(1000 - len(kept), len(kept), 999)
    assert recorded(100, max_frames=100).left_out is None


def test_a_trace_of_a_recording_is_that_of_all_records_cut_off(tmp_path: Path) -> None:
    short, long = recorded(60, max_frames=11), recorded(60, max_frames=60)
    assert len(short.records) < 15
    one = write_trace(tmp_path / "a.json", short.records, PLAN, simulated=False, left_out=short.left_out, max_frames=11)
    other = write_trace(tmp_path / "b.json", long.records, PLAN, simulated=False, max_frames=11)
    assert one == other
    assert one.describe() == "frames in the trace: 11; 49 later ones of routes left out (frames 11 to 59)"
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_several_plans_are_processes_of_their_own(tmp_path: Path) -> None:
    later = [FrameRecord(r.frame, r.route, r.submitted_ns + 50 * MS, r.done_ns + 50 * MS, r.hops) for r in RECORDS]
    plans = [TracedPlan("pipe-it", PLAN, RECORDS), TracedPlan("mine", PLAN, later)]
    summary = write_traces(tmp_path / "t.json", plans, simulated=True, max_frames=7)
    events = load(tmp_path / "t.json")
    check_nesting([e for e in events if e["pid"] == 1])
    assert {e["args"]["name"] for e in of(events, "M", name="process_name")} == {
        "pipe-it (simulated)",
        "mine (simulated)",
    }
    assert summary.frames == {"pipe-it": 3, "mine": 4}
    assert json.loads((tmp_path / "t.json").read_text())["otherData"]["source"] == "simulated on a cost table"
    assert len({(e["pid"], e["tid"]) for e in of(events, "M", name="thread_name")}) == 4


def test_no_plan_of_several_is_left_empty(tmp_path: Path) -> None:
    """Plans that ran one after the other: the frames of the first would fill a trace."""
    plans = [TracedPlan("short", PLAN, RECORDS[:1]), TracedPlan("a", PLAN, RECORDS), TracedPlan("b", PLAN, RECORDS)]
    summary = write_traces(tmp_path / "t.json", plans, simulated=True, max_frames=5)
    assert summary.frames == {"short": 1, "a": 2, "b": 2}
    assert summary.dropped == {"a": LeftOut(2, 2, 3), "b": LeftOut(2, 2, 3)}


def test_failed_frames_show_what_they_did(tmp_path: Path) -> None:
    hops = (HopTime("big1", 0, 3, START + MS, START + 2 * MS), HopTime("little2", 3, 4, START + 3 * MS, 0))
    failed = FrameRecord(9, 0, START, START + 4 * MS, hops, failed=True)
    assert hops_done(failed) == hops[:1]
    assert list(waits(failed)) == [("big1", START, START + MS)]
    write_trace(tmp_path / "t.json", [failed], PLAN, simulated=False)
    events = load(tmp_path / "t.json")
    check_nesting(events)
    assert len(of(events, "X")) == 1
    life = of(events, "b", name="frame on route 0 (failed)")
    assert life[0]["args"]["failed"] is True


def test_no_frames_at_all(tmp_path: Path) -> None:
    summary = write_trace(tmp_path / "t.json", [], PLAN, simulated=False, layers=LAYERS)
    assert summary.describe() == "frames in the trace: 0"
    assert of(load(tmp_path / "t.json"), "X") == []


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="has 4 layers, 1 layer names"):
        write_trace(tmp_path / "t.json", RECORDS, PLAN, simulated=False, layers=("one",))
    stranger = FrameRecord(0, 0, START, START + 9, (HopTime("nobody", 0, 4, START, START + 1),))
    with pytest.raises(PlanError, match="'nobody', which is no worker"):
        write_trace(tmp_path / "t.json", [stranger], PLAN, simulated=False)
    with pytest.raises(DocumentError, match="cannot write"):
        write_trace(tmp_path / "missing" / "t.json", RECORDS, PLAN, simulated=False)


@pytest.mark.parametrize("name", ["a" * 10_000, "\ud800", "\x00\u202e\n", '"},{"ph":"X"'])
def test_odd_layer_names_stay_names(tmp_path: Path, name: str) -> None:
    write_trace(tmp_path / "t.json", RECORDS, PLAN, simulated=False, layers=(name, "b", "c", name))
    events = load(tmp_path / "t.json")
    assert len(of(events, "X")) == 7
    assert {len(e["name"]) for e in of(events, "X")} <= set(range(200))


def test_names_of_segments() -> None:
    assert segment_name(0, 3, ()) == "layers 0-2"
    assert segment_name(3, 4, LAYERS) == "layer 3: fc"
    assert shorten("x" * 61) == "x" * 29 + "…" + "x" * 29
    assert shorten("x" * 60) == "x" * 60


@given(st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 50), min_size=6, max_size=6)), max_size=30))
def test_any_records_make_a_sound_trace(tmp_path_factory: pytest.TempPathFactory, drawn: Any) -> None:
    records = []
    for frame, (route, gaps) in enumerate(drawn):
        times = [sum(gaps[: i + 1]) for i in range(6)]
        hops = list(zip(times[1::2], times[2::2], strict=False))[: len(PLAN.routes[route].hops)]
        records.append(record(frame, route, times[0], *hops, done=times[5]))
    path = tmp_path_factory.mktemp("trace") / "t.json"
    write_trace(path, records, PLAN, simulated=True)
    events = load(path)
    check_nesting(events)
    assert len(of(events, "X")) == sum(len(r.hops) for r in records)
    for name in {e["name"] for e in of(events, "C")}:
        depths = [e["args"]["[frames]"] for e in of(events, "C", name=name)]
        assert min(depths) >= 0
        assert depths[-1] == 0


def fake_cpufreq(root: Path, cpu: int, khz: str) -> Path:
    path = root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"
    path.parent.mkdir(parents=True)
    path.write_text(khz)
    return path


def test_frequencies_are_sampled_where_the_system_tells(tmp_path: Path) -> None:
    path = fake_cpufreq(tmp_path, 0, "1800000\n")
    fake_cpufreq(tmp_path, 1, "<unknown>\n")
    before = time.monotonic_ns()
    with FrequencySampler((0, 1, 2), interval_s=0.001, root=tmp_path) as sampler:
        wait_until(lambda: len(sampler.samples) >= 3, 20)
        path.write_text("900000\n")
        wait_until(lambda: sampler.samples[-1].value == 900, 20)
        path.unlink()
    samples = sampler.samples
    assert {(s.track, s.unit) for s in samples} == {("cpu0", "MHz")}
    assert samples[0].value == 1800
    assert all(before <= a.at_ns <= b.at_ns for a, b in itertools.pairwise(samples))
    sampler.stop()


def test_no_thread_where_no_frequency_can_be_read(tmp_path: Path) -> None:
    count = threading.active_count()
    with FrequencySampler((0, 1), root=tmp_path) as sampler:
        assert threading.active_count() == count
    assert sampler.samples == ()


def test_samples_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_SAMPLES >= 1000
    monkeypatch.setattr("corepipe.report.frequency.MAX_SAMPLES", 8)
    fake_cpufreq(tmp_path, 0, "1000000")
    with FrequencySampler((0,), interval_s=1e-5, root=tmp_path) as sampler:
        wait_until(lambda: sampler._interval_s > 1e-3, 20)
        assert len(sampler.samples) <= 9


def test_numbers_are_written_to_the_nanosecond(tmp_path: Path) -> None:
    odd = FrameRecord(
        0, 1, START, START + 3 * 10**15 + 7, (HopTime("little2", 0, 4, START + 1, START + 3 * 10**15 + 3),)
    )
    write_trace(tmp_path / "t.json", [odd], PLAN, simulated=False)
    text = (tmp_path / "t.json").read_text()
    assert re.search(r'"ts":0\.001,"dur":3000000000000\.002\b', text)
