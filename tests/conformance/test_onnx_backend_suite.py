"""The ONNX project's own backend tests, run through corepipe whole and cut into two and four segments.

A case counts where ONNX Runtime passes it by itself. What corepipe does not take is in `exclusions.toml`, with reasons.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
import tomllib
import unittest
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from corepipe import engine
from corepipe.errors import CorepipeError
from corepipe.network.load import load_network
from corepipe.network.model import Network
from corepipe.runtime.stream import Stream

pytestmark = pytest.mark.timeout(900)

ENGINE = "onnxruntime"
KINDS = ("node", "real", "simple", "pytorch-converted", "pytorch-operator")
TWO_HALF_UNITS = 2**-9
"""Two units in the last place of a float16; the suite allows as many to a bfloat16."""
STREAMED, STREAMED_QUICK = 40, 6

Arrays = list[Any]


@dataclasses.dataclass
class Case:
    """A model with the inputs and outputs that the suite gives for it."""

    kind: str
    name: str
    model: onnx.ModelProto
    data: list[tuple[Arrays, Arrays]]
    rtol: float
    atol: float

    def check(self, number: int, outputs: Arrays, rtol: float = 0) -> None:
        """Hold outputs for a data set against the expected ones, with the suite's function and tolerances."""
        Runner.assert_similar_outputs(self.data[number][1], outputs, max(self.rtol, rtol), self.atol)


@dataclasses.dataclass
class Outcome:
    """What became of a case: `problem` is empty where it passed; `parts` are the segments it was cut into."""

    case: Case
    problem: str = ""
    nodes: int = 0
    parts: tuple[int, ...] = ()
    rounded: bool = False


@functools.cache
def suite() -> tuple[Case, ...]:
    """All cases of the onnx package but those that would have to be downloaded."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # The suite computes many expected outputs when it is imported.
        warnings.simplefilter("ignore")
        return tuple(_cases())


def _cases() -> Iterator[Case]:
    for kind in KINDS:
        for test in load_model_tests(kind=kind):
            if test.model is not None:
                model, data = test.model, [tuple([_array(a) for a in side] for side in one) for one in test.data_sets]
            elif test.model_dir:
                model, data = _from_folder(Path(test.model_dir))
            elif test.url.startswith("onnx/backend/test/data/light/"):
                model, data = _light(Path(onnx.__file__).parents[1] / test.url)
            else:
                continue
            yield Case(kind, test.name, model, data, test.rtol, test.atol)


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _from_folder(folder: Path) -> tuple[onnx.ModelProto, list[Any]]:
    model = onnx.load(folder / "model.onnx")

    def arrays(data: Path, what: str, values: Sequence[onnx.ValueInfoProto]) -> Arrays:
        found = [data / f"{what}_{i}.pb" for i in range(len(values))]
        return [_read(path, value) for path, value in zip(found, values, strict=True) if path.exists()]

    folders = sorted(folder.glob("test_data_set*"))
    return model, [(arrays(f, "input", model.graph.input), arrays(f, "output", model.graph.output)) for f in folders]


def _read(path: Path, value: onnx.ValueInfoProto) -> Any:
    content = path.read_bytes()
    if value.type.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if value.type.HasField("optional_type"):
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(content))


def _light(path: Path) -> tuple[onnx.ModelProto, list[Any]]:
    """A real graph with weights that are all alike, the suite's dummy input and the outputs beside it."""
    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [Runner.generate_dummy_data(v, seed=0) for v in model.graph.input if v.name not in constants]
    files = [path.with_name(f"{path.stem}_output_{i}.pb") for i in range(len(model.graph.output))]
    return model, [(inputs, [onnx.numpy_helper.to_array(onnx.load_tensor(file)) for file in files])]


def passes_in_onnxruntime(case: Case) -> bool:
    """Whether ONNX Runtime by itself gives the expected outputs, with released operators only."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.allow_released_opsets_only", "1")
    try:
        session = onnxruntime.InferenceSession(
            case.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_inputs()]
        for number, (inputs, _) in enumerate(case.data):
            case.check(number, session.run(None, dict(zip(names, inputs, strict=False))))
    except (Exception, unittest.SkipTest):
        return False
    return True


def load(case: Case) -> Network:
    """The network; sizes of 0, which corepipe takes for open ones, are given as a user would."""
    shapes = {}
    fed = case.data[0][0]
    for value, array in zip(case.model.graph.input, fed, strict=False):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape") and not np.size(array):
            shapes[value.name] = np.shape(array)
    return load_network(case.model, shapes=shapes)


def edges(network: Network, parts: int) -> tuple[int, ...]:
    """Where to cut into `parts` segments of about as many layers each, or into as many as there can be."""
    legal = network.legal_cuts()
    wanted = min(parts - 1, len(legal))
    cuts = {legal[(i + 1) * len(legal) // (wanted + 1)] for i in range(wanted)} if wanted < len(legal) else set(legal)
    return (0, *sorted(cuts), len(network.layers))


def run(network: Network, where: Sequence[int], case: Case, rtol: float = 0) -> None:
    """Run the segments between `where` one after the other, through the engine interface, and check the outputs."""
    segments = [network.segment(start, stop) for start, stop in itertools.pairwise(where)]
    compiled = [engine.get(ENGINE).compile(engine.serialized(ENGINE, s.model), 1) for s in segments]
    for number, (inputs, _) in enumerate(case.data):
        alive = dict(zip((t.name for t in network.inputs), inputs, strict=True))
        for segment, ready in zip(segments, compiled, strict=True):
            given = {t.name: np.asarray(alive[t.name], order="C") for t in segment.inputs}
            assert all(given[t.name].dtype == t.dtype for t in segment.inputs)
            made = {
                t.name: np.empty(t.shape, t.dtype) if t.shape is not None else functools.partial(_keep, alive, t.name)
                for t in segment.outputs
            }
            ready.bind(given, made)()
            alive |= {name: array for name, array in made.items() if isinstance(array, np.ndarray)}
        case.check(number, [alive[t.name] for t in network.outputs], rtol)


def _keep(alive: dict[str, Any], name: str, array: Any) -> None:
    alive[name] = array.copy()


def try_case(case: Case) -> Outcome:
    """Load a case, cut it and run it."""
    outcome = Outcome(case)
    try:
        network = load(case)
        outcome.nodes = len(network.model.graph.node)
        divisions = sorted({edges(network, 2), edges(network, 4)}, key=len)
        for where in divisions:
            try:
                run(network, where, case)
            except AssertionError:
                inner = (t.dtype for index in where[1:-1] for t in network.cuts[index].tensors)
                if not any(dtype == np.float16 for dtype in inner):
                    raise
                run(network, where, case, TWO_HALF_UNITS)
                outcome.rounded = True
        outcome.parts = tuple(len(where) - 1 for where in divisions)
    except (CorepipeError, AssertionError) as error:
        outcome.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return outcome


@pytest.fixture(scope="module")
def passing() -> list[Case]:
    """The cases that ONNX Runtime passes."""
    return [case for case in suite() if passes_in_onnxruntime(case)]


@pytest.fixture(scope="module")
def outcomes(passing: list[Case]) -> list[Outcome]:
    """All of these, tried."""
    return [try_case(case) for case in passing]


@pytest.fixture(scope="module")
def exclusions() -> list[dict[str, Any]]:
    """What `exclusions.toml` says."""
    return tomllib.loads(Path(__file__).with_name("exclusions.toml").read_text())["excluded"]


def excluding(exclusions: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The exclusions that a case is named in."""
    return [e for e in exclusions if any(re.fullmatch(pattern, name) for pattern in e["cases"])]


def test_every_case_passes_in_segments_or_is_excluded_with_a_reason(outcomes, exclusions):
    wrong = []
    for outcome in outcomes:
        named = excluding(exclusions, outcome.case.name)
        if not named and outcome.problem:
            wrong.append(f"{outcome.case.name} fails: {outcome.problem}")
        elif named and not outcome.problem:
            wrong.append(f"{outcome.case.name} passes, but is excluded: {named[0]['reason']}")
        elif named and not all(e["message"] in outcome.problem for e in named):
            wrong.append(f"{outcome.case.name} is excluded for another reason than it fails: {outcome.problem}")
    assert not wrong, "\n".join(wrong)


def test_no_exclusion_is_left_over(outcomes, exclusions):
    names = [outcome.case.name for outcome in outcomes]
    for pattern in (pattern for e in exclusions for pattern in e["cases"]):
        assert any(re.fullmatch(pattern, name) for name in names), f"{pattern} names no case"


def test_the_counts(outcomes, exclusions):
    passed = [o for o in outcomes if not o.problem and not o.rounded]
    parts = collections.Counter(max(o.parts) for o in passed)
    split = sum(count for number, count in parts.items() if number > 1)
    single = sum(o.nodes == 1 for o in passed if max(o.parts) == 1)
    print(f"\nONNX backend tests of onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}:")
    print(f"  cases                                      {len(suite()):5}")
    print(f"  ONNX Runtime passes                        {len(outcomes):5}")
    print(f"  of these corepipe passes                   {len(passed):5}")
    print(f"    cut: into 2, and into 2 / 3 / 4 segments {split:5} ({parts[2]} / {parts[3]} / {parts[4]})")
    print(f"    not cut: one operator                    {single:5}")
    print(f"    not cut: several, but no legal cut       {parts[1] - single:5}")
    print(f"  not counted: float16 rounded at a cut      {sum(o.rounded for o in outcomes):5}")
    for exclusion in exclusions:
        count = sum(bool(excluding([exclusion], o.case.name)) for o in outcomes)
        print(f"  excluded: {exclusion['reason'].partition(':')[0][:60]:60} {count}")
    assert len(passed) > 0.95 * len(outcomes) > 1000
    assert parts[4] > 100


def streamable(
    passing: list[Case], exclusions: list[dict[str, Any]], count: int, *, real: bool
) -> Iterator[tuple[Case, Network]]:
    """Cases as different as their names that can be cut into four, with or without the real networks."""
    seen: set[str] = set()
    for case in sorted(passing, key=lambda case: (-KINDS.index(case.kind), case.name)):
        subject = case.name[:24]
        unfit = len(case.model.graph.node) < 4 or subject in seen or (case.kind == "real" and not real)
        if unfit or len(seen) == count or excluding(exclusions, case.name):
            continue
        network = load(case)
        if len(network.legal_cuts()) >= 3:
            seen.add(subject)
            yield case, network
    assert len(seen) == count


def check_streams(cases: Iterator[tuple[Case, Network]], make_plan: Any, topology: Any) -> None:
    """Frames over a route of two hops and one of four, in turns."""
    for case, network in cases:
        routes = [
            (1.0, [(i % 2, start, stop) for i, (start, stop) in enumerate(itertools.pairwise(edges(network, parts)))])
            for parts in (2, 4)
        ]
        taken: list[int] = []
        frames = [inputs for inputs, _ in case.data] * 4
        with Stream(
            network, make_plan(network, routes), topology, on_record=lambda record, to=taken: to.append(record.route)
        ) as stream:
            results = list(stream(frames))
        assert set(taken) == {0, 1}, case.name
        for number, result in enumerate(results):
            outputs = [result[t.name] for t in network.outputs] if isinstance(result, dict) else [result]
            case.check(number % len(case.data), outputs, TWO_HALF_UNITS if "fp16" in case.name else 0)


def test_some_in_worker_processes(passing, exclusions, make_plan, two_cores):
    check_streams(streamable(passing, exclusions, STREAMED_QUICK, real=False), make_plan, two_cores)


@pytest.mark.slow
def test_many_in_worker_processes(passing, exclusions, make_plan, two_cores):
    check_streams(streamable(passing, exclusions, STREAMED, real=True), make_plan, two_cores)
