from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepipe.cost.table import (
    ConfigCosts,
    CostTable,
    EngineName,
    Provenance,
    TableCluster,
    TableMachine,
    TableNetwork,
)
from corepipe.errors import DocumentError, FrameError, PlanError
from corepipe.network.model import Cut, Descriptor, Layer, Network, TensorInfo
from corepipe.plan.model import Hop, Plan, PlanNetwork, Route, Worker
from corepipe.plan_results import PlanResult
from corepipe.report.html import VOID, Html, escape, tag
from corepipe.report.page import page, write_page
from corepipe.report.page_frames import typical
from corepipe.report.sources import Sheet, milliseconds, number, percent
from corepipe.report.summary import result_of_records
from corepipe.runtime.record import FrameRecord, HopTime
from corepipe.topology.model import Cache, Cluster, Core, Topology

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><script>document.title='x'</script>",
    "conv\u202etxt.exe\x00\ud800",
    "a" * 100_000,
    "' onmouseover='alert(1)",
)
SEGMENT = {"big1": 0.010, "little2": 0.020}


class Reader(HTMLParser):
    """The elements of a page; fails on markup that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, name: str, class_: str | None = None) -> list[dict[str, str | None]]:
        return [
            a for n, a in self.elements if n == name and (class_ is None or class_ in (a.get("class") or "").split())
        ]

    @property
    def text(self) -> str:
        return "".join(data for name, data in self.texts if name not in ("style", "script"))


def make_network(names: Sequence[str] = EVIL) -> Network:
    info = TensorInfo("t", np.dtype(np.float32), (1, 3))
    layers = tuple(
        Layer(i, name, (i,), Descriptor("conv", ("Conv",), flops=(i + 1) * 10**6, bytes_weights=1000), (f"t{i}",))
        for i, name in enumerate(names)
    )
    cuts = tuple(Cut(i, (info,)) for i in range(len(names) + 1))
    return Network("net <b>", "ab" * 32, onnx.ModelProto(), (info,), (info,), layers, cuts)


def make_table(names: Sequence[str] = EVIL, source: Any = "measured") -> CostTable:
    count = len(names)
    names = [name.encode("utf-8", "replace").decode() for name in names]
    return CostTable(
        network=TableNetwork(name="net <b>", sha256="0", layers=tuple(names), cut_bytes=(12,) * (count + 1)),
        machine=TableMachine(
            description="board <i>",
            fingerprint="f",
            clusters=(TableCluster(name="big", cores=(4,)), TableCluster(name="little", cores=(0, 1))),
        ),
        engines=(EngineName(name="onnxruntime", version="1.2"),),
        configs=tuple(ConfigCosts(config=c, layer_s=(s / count,) * count) for c, s in SEGMENT.items()),
        provenance=Provenance(source=source, created="2026-01-02", note="a <note>"),
    )


def make_plan(name: str = "routes", count: int = len(EVIL), bound: float | None = 160.0) -> Plan:
    return Plan(
        planner=name,
        network=PlanNetwork(name="net <b>", sha256="0", layers=count),
        workers=(
            Worker(name="big1", config="big1", cores=(4,)),
            Worker(name="little2", config="little2", cores=(0, 1)),
        ),
        routes=(
            Route(rate_fps=80, hops=(Hop(worker="big1", layers=(0, 4)), Hop(worker="little2", layers=(4, count)))),
            Route(rate_fps=20, hops=(Hop(worker="little2", layers=(0, count)),)),
        ),
        bound_fps=bound,
    )


def make_records(plan: Plan, frames: int = 30) -> list[FrameRecord]:
    records = []
    for frame in range(frames):
        route = int(frame % 5 == 4)
        at = frame * 10_000_000
        submitted, hops = at, []
        for hop in plan.routes[route].hops:
            hops.append(HopTime(hop.worker, hop.start, hop.stop, at + 1_000_000, at + 9_000_000))
            at += 9_000_000
        records.append(FrameRecord(frame, route, submitted, at + 1_000_000, tuple(hops)))
    return records


TOPOLOGY = Topology(
    clusters=(
        Cluster("big", (Core((4,)),), core_name="Cortex-<A76>", max_mhz=2400.0, governor="schedutil",
                caches=(Cache(2, 512 * 1024, 1), Cache(3, 2 * 2**20, 3))),
        Cluster("little", (Core((0,)), Core((1,))), capacity=0.4),
    ),
    machine="Chip & Co",
    warnings=("governor <powersave>",),
)  # fmt: skip


def make_result(name: str = "routes", **changes: Any) -> PlanResult:
    plan = make_plan()
    result = result_of_records(name, plan, make_records(plan), make_table())
    return dataclasses.replace(result, largest_error=1e-6, peak_rss_bytes=2 * 10**8, **changes)


def full_page(**options: Any) -> str:
    base = make_result("all-cores", throughput_fps=50.0, throughput_spread_fps=(40.0, 60.0))
    results = [base, make_result()]
    records = {"routes": make_records(make_plan())}
    return page(make_network(), TOPOLOGY, make_table(), results, records, **options)


def test_the_page_needs_nothing_else_and_forbids_it_to_itself() -> None:
    text = full_page()
    read = Reader(text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    for name, attributes in read.elements:
        assert not attributes.keys() & {"src", "href", "srcset", "action", "data"}, name
        assert not any(key.startswith("on") for key in attributes)
    scripts = [data for name, data in read.texts if name == "script"]
    digest = base64.b64encode(hashlib.sha256("".join(scripts).encode()).digest()).decode()
    policy = next(a["content"] for a in read.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert read.of("html")[0]["lang"] == "en"
    assert any(a.get("name") == "viewport" for a in read.of("meta"))
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("simulated", [False, True])
def test_names_never_become_markup(simulated: bool) -> None:
    text = full_page(simulated=simulated, command="run <x> & \"y'", frames="</dd><script>")
    read = Reader(text)
    assert len(read.of("script")) == 1
    assert len(read.of("style")) == 1
    assert not read.of("img")
    assert not read.of("b") or all(set(a) <= {"class"} for a in read.of("b"))
    assert "<script>alert(1)</script>" in read.text
    assert "conv\\u202etxt.exe\\u0000\\ud800" in read.text
    assert "net <b>" in read.text
    assert len(text) < 400_000, "a name of any length is cut"
    text.encode("utf-8")


@given(st.text(max_size=40))
def test_any_text_survives_as_text(text: str) -> None:
    read = Reader(tag("p", text, title=text))
    assert [name for name, _ in read.elements] == ["p"]
    assert isinstance(escape(text), Html)
    if text.isprintable():
        assert read.text == text
        assert read.of("p")[0]["title"] == text


def test_every_part_says_where_its_figures_come_from() -> None:
    text = full_page()
    read = Reader(text)
    labels = {data for name, data in read.texts if name == "span"}
    assert {"measured here", "cost table (measured)", "proved", "from the model", "read here"} <= labels
    sentence = "by the cost table of board <i>, measured with the engine (onnxruntime 1.2), 2026-01-02; a <note>"
    assert sentence in read.text
    assert "simulated" not in read.text.lower()
    assert "Best: routes at" in read.text
    assert re.search(r"frames/s measured, 2\.0\dx all-cores \(50\.00\)", read.text)
    for section in text.split("<section>")[1:]:
        assert 'class="src' in section


def test_a_simulation_says_so_and_never_measured_here() -> None:
    result = make_result()
    table = make_table(source="board")
    text = page(None, None, table, [result], {"routes": make_records(result.plan)}, simulated=True)
    read = Reader(text)
    assert "measured here" not in read.text
    assert "nothing on this page was run" in read.text
    assert "cost table (board)" in read.text
    assert "not compared" in read.text
    assert read.of("span", "simulated")


def test_emulated_cores_are_named() -> None:
    topology = dataclasses.replace(TOPOLOGY, emulated=True)
    text = page(make_network(), topology, make_table(source="emulated"), [make_result()], {})
    assert "slowed by `corepipe emulate`" in Reader(text).text
    assert Reader(text).of("span", "emulated")


def test_machine_layers_and_routes_are_shown() -> None:
    read = Reader(full_page())
    assert "Cortex-<A76>" in read.text
    assert "up to 2400 MHz, schedutil" in read.text
    assert "L2 512 KiB, L3 2 MiB for 3" in read.text
    assert "governor <powersave>" in read.text
    cores = {a["title"]: a["style"] for a in read.of("span", "core")}
    colors = {str(style).partition(":")[2] for style in cores.values()}
    assert set(cores) == {"core 4: big1", "core 0: little2", "core 1: little2"}
    assert len(colors) == 2
    strips = read.of("div", "workers")
    assert len(strips) == 4, "two routes of two plans"
    assert len(read.of("div", "heat")) == 2
    chips = read.of("span", "chip")
    assert {str(a["style"]).partition(":")[2].partition(";")[0] for a in chips} == colors
    assert "route 0: 80.0 frames/s planned" in re.sub(r"\s+", " ", read.text)
    assert "80% of the frames" in read.text


def test_gantt_holds_frames_in_their_places() -> None:
    read = Reader(full_page())
    lanes = read.of("div", "g-frame")
    assert len(lanes) == 14
    lives = read.of("i", "life")
    assert [a["data-f"] for a in lives] == sorted((a["data-f"] for a in lives), key=lambda f: int(str(f)))
    for attributes in (*lives, *read.of("i", "block")):
        left, width = (float(v) for v in re.findall(r"(?:left|width):([\d.]+)%", str(attributes["style"])))
        assert left >= 0
        assert left + width <= 100.02
    assert "There are no records of frames." in read.text, "the other plan has none"


def test_long_routes_become_a_strip_and_a_table() -> None:
    names = [f"layer{i}" for i in range(12)]
    workers = ("big1", "little2")
    hops = tuple(Hop(worker=workers[i % 2], layers=(i, i + 1)) for i in range(12))
    plan = make_plan(count=12).model_copy(update={"routes": (Route(rate_fps=1, hops=hops),)})
    records = [
        FrameRecord(f, 0, f * 10, f * 10 + 13, tuple(HopTime(h.worker, h.start, h.stop, f * 10 + i, f * 10 + i + 1)
                                                     for i, h in enumerate(hops)))
        for f in range(1, 9)
    ]  # fmt: skip
    result = result_of_records("long", plan, records, make_table(names))
    read = Reader(page(make_network(names), TOPOLOGY, make_table(names), [result], {"long": records}))
    assert len(read.of("div", "long")) == 1
    assert "12 hops" in read.text
    assert not read.of("span", "chip")


def test_parts_that_are_not_known_are_left_out() -> None:
    result = result_of_records("run", make_plan(bound=None), make_records(make_plan()))
    for network, topology, table in (
        (make_network(), TOPOLOGY, None),
        (None, None, None),
        (None, TOPOLOGY, make_table()),
        (make_network(), None, make_table()),
    ):
        read = Reader(page(network, topology, table, [result], {}))
        assert "run" in read.text
        assert "nan" not in read.text.lower().replace("nanosecond", "")
    assert "Layers, by cost" not in Reader(page(None, None, None, [result], {})).text
    empty = Reader(page(make_network(), TOPOLOGY, make_table(), [], {}))
    assert "Plans side by side" not in empty.text


def test_unstable_and_wrong_results_are_marked() -> None:
    wrong = make_result("wrong", throughput_fps=900.0)
    wrong = dataclasses.replace(wrong, largest_error=0.5)
    read = Reader(page(make_network(), TOPOLOGY, make_table(), [make_result("right"), wrong], {}))
    assert "DIFFER by 5.0e-01" in read.text
    assert "Nothing beats right here" in read.text, "a plan with wrong outputs is not the best"
    shaky = make_result("shaky", throughput_spread_fps=(10.0, 200.0))
    assert "marks an unstable figure" in Reader(page(None, None, make_table(), [shaky], {})).text


def test_plans_that_ran_one_after_the_other_are_not_compared() -> None:
    first, second = make_result("routes", throughput_fps=66.0), make_result("routes 2", throughput_fps=50.0)
    read = Reader(page(make_network(), TOPOLOGY, make_table(), [first, second], {}, successive=True))
    assert "The plan changed while it ran: routes (66.00 frames/s), then routes 2 (50.00 frames/s)." in read.text
    for claim in ("Nothing beats", "Best:", "0.76x", "1.00x"):
        assert claim not in read.text
    assert not read.of("div", "best")
    alone = Reader(page(make_network(), TOPOLOGY, make_table(), [first], {}, successive=True))
    assert "changed" not in alone.text


def test_write_page(tmp_path: Path) -> None:
    path = tmp_path / "p.html"
    write_page(path, make_network(), TOPOLOGY, make_table(), [make_result()], {"routes": make_records(make_plan())})
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>\n<html")
    with pytest.raises(DocumentError, match="cannot write"):
        write_page(tmp_path / "no" / "p.html", None, None, None, [], {})


def test_parts_of_different_models_are_refused() -> None:
    with pytest.raises(PlanError, match="take plan and network of the same model"):
        page(make_network(["a"]), TOPOLOGY, None, [make_result()], {})
    with pytest.raises(PlanError, match="profile the network again"):
        page(make_network(), TOPOLOGY, make_table(["a"]), [], {})


def test_a_run_summed_up() -> None:
    plan = make_plan()
    result = result_of_records("run", plan, make_records(plan), make_table())
    assert result.throughput_fps == pytest.approx(100, rel=0.1)
    assert result.latency_s[0] == pytest.approx(0.019)
    assert result.predicted_fps > 0
    assert result.bottleneck == "little2"
    assert {(h.worker, h.start, h.stop) for h in result.hops} == {("big1", 0, 4), ("little2", 4, 6), ("little2", 0, 6)}
    assert all(h.measured_s == pytest.approx(0.008) for h in result.hops)
    assert math.isnan(result.largest_error)
    assert math.isnan(result_of_records("run", plan, make_records(plan)).predicted_fps)
    with pytest.raises(FrameError, match="too few"):
        result_of_records("run", plan, make_records(plan, 1))
    failed = [r._replace(failed=True) for r in make_records(plan)]
    with pytest.raises(FrameError, match=r"run: too few frames with a result to sum up \(0\)"):
        result_of_records("run", plan, failed)


def test_typical_frames_avoid_a_pause() -> None:
    plan = make_plan()
    early = make_records(plan, 40)
    late = [r._replace(frame=r.frame + 40, submitted_ns=r.submitted_ns + 10**12, done_ns=r.done_ns + 10**12)
            for r in early]  # fmt: skip
    chosen = typical([*late, *early], 14)
    assert len(chosen) == 14
    assert chosen[-1].done_ns - chosen[0].submitted_ns < 10**9
    assert typical([], 14) == []


def test_many_workers_have_colours_of_their_own() -> None:
    workers = tuple(Worker(name=f"w{i}", config="big1", cores=(i,)) for i in range(24))
    routes = tuple(Route(rate_fps=1, hops=(Hop(worker=w.name, layers=(0, 1)),)) for w in workers)
    plan = Plan(planner="p", network=PlanNetwork(name="n", sha256="0", layers=1), workers=workers, routes=routes)
    records = [FrameRecord(i, i, i, i + 9, (HopTime(f"w{i}", 0, 1, i + 1, i + 5),)) for i in range(24)]
    sheet = Sheet.of(None, None, None, [result_of_records("p", plan, records)], False)
    assert len(set(sheet.colors.values())) == 24


def test_figures_as_text() -> None:
    assert [number(v) for v in (0, 0.00012345, 1.5, 42.4242, 12345.6, math.nan, math.inf, None)] == [
        "0", "0.0001234", "1.500", "42.42", "12,346", "–", "–", "–",
    ]  # fmt: skip
    assert milliseconds(0.0123456) == "12.3 ms"
    assert milliseconds(None) == "–"
    assert percent(1, 3) == "33.33%"
    assert percent(5, 0) == "0.00%"
    assert percent(9, 3) == "100.00%"


def test_layers_are_coloured_by_the_costs_that_the_plans_run_by() -> None:
    table, result = make_table(), make_result()
    other = [costs.model_copy(update={"engine": "ncnn"}) for costs in table.configs]
    engines = (*table.engines, EngineName(name="ncnn", version="1"))
    both = table.replaced(configs=(*table.configs, *other), engines=engines)
    on_ncnn = tuple(worker.model_copy(update={"engine": "ncnn"}) for worker in result.plan.workers)
    ran = dataclasses.replace(result, plan=result.plan.model_copy(update={"workers": on_ncnn}))
    for shown, engine in ((result, "onnxruntime"), (ran, "ncnn")):
        names = [t for name, t in Reader(page(make_network(), TOPOLOGY, both, [shown], {})).texts if name == "th"]
        columns = [name for name in names if name.startswith("big1 ")]
        assert columns[0] == f"big1 {engine} ms"
        assert len(columns) == 2
