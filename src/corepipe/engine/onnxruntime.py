"""ONNX Runtime behind the engine interface."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported; see SECURITY.md
import onnxruntime as ort

from corepipe.engine._onnxruntime.parts import node_of
from corepipe.engine.base import DynamicOutput, KernelTime, as_engine_error, brief, check_memory
from corepipe.errors import CorepipeError, EngineError, WorkerError

_KERNEL_SUFFIX = "_kernel_time"
_FATAL = 4


class OnnxRuntimeEngine:
    """The CPU execution provider; every operator runs on the threads it is given, and only there."""

    name = "onnxruntime"
    shared_threads = 0
    """How many threads all sessions of this process share; 0 where each has its own."""
    alone = True
    """Whether no other engine runs in this process."""

    def dedicate(self, threads: int, alone: bool = True) -> None:
        """See `Engine.dedicate`.

        A session's own threads spin for tens of milliseconds after each run, in the way of the next session's: so all
        share one pool. Beside another engine each session has its own, since only such threads can be told to stop
        spinning when a run ends.
        """
        self.alone = alone
        if alone and threads > 1 and not self.shared_threads and hasattr(ort, "set_global_thread_pool_sizes"):
            # It warns at every session that the session's own number of threads does not count.
            ort.set_default_logger_severity(_FATAL)
            ort.set_global_thread_pool_sizes(threads, 1)
            self.shared_threads = threads

    def compile(self, model: bytes, threads: int) -> _Session:
        """See `Engine.compile`."""
        with as_engine_error("onnxruntime refuses the model"):
            return _Session(_session(model, _options(threads)))

    def profile(
        self,
        model: bytes,
        threads: int,
        inputs: Mapping[str, NDArray[Any]],
        runs: int,
        between: Callable[[], None] = lambda: None,
    ) -> Sequence[Sequence[KernelTime]]:
        """See `Engine.profile`."""
        with _temporary_folder() as folder, as_engine_error("onnxruntime: profiling failed"):
            options = _options(threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            with as_engine_error("onnxruntime refuses the model"):
                session = _session(model, options)
            for _ in range(runs):
                session.run(None, dict(inputs))
                between()
            return _split_runs(_events(Path(session.end_profiling())), runs)


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="corepipe-", ignore_cleanup_errors=True)
    except OSError as error:
        raise WorkerError(
            f"onnxruntime needs a temporary folder: {error.strerror or error}; let the environment variable "
            f"TMPDIR name one that can be written"
        ) from None


def _events(file: Path) -> Any:
    """What the profiler wrote, which no model is to be blamed for if it is not whole."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):
        raise WorkerError(
            f"onnxruntime's profiler could not write to {file.parent}; make room there, or let the environment "
            f"variable TMPDIR name another folder"
        ) from None


class _Session:
    def __init__(self, session: Any) -> None:
        self._session = session

    def bind(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any] | DynamicOutput]
    ) -> Callable[[], None]:
        """See `Compiled.bind`."""
        check_memory("onnxruntime", inputs, outputs)
        session = self._session
        dynamic = {index: t for index, t in enumerate(outputs.values()) if not isinstance(t, np.ndarray)}

        def bind_outputs() -> None:
            for name, target in outputs.items():
                if isinstance(target, np.ndarray):
                    binding.bind_output(name, "cpu", 0, target.dtype, target.shape, target.ctypes.data)
                else:
                    binding.bind_output(name, "cpu")

        with as_engine_error("onnxruntime: cannot bind"):
            binding = session.io_binding()
            for name, array in inputs.items():
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            bind_outputs()

        def run() -> None:
            try:
                try:
                    session.run_with_iobinding(binding)
                    if dynamic:
                        values = binding.get_outputs()
                        for index, target in dynamic.items():
                            target(values[index].numpy())
                finally:
                    if dynamic:  # a run binds what it allocated; the next one would have to fit into it
                        binding.clear_binding_outputs()
                        bind_outputs()
            except CorepipeError:
                raise
            except Exception as error:
                raise EngineError(f"onnxruntime: run failed: {brief(str(error), type(error).__name__)}") from None

        # The binding knows addresses only: the arrays must live as long as the call.
        run.__dict__["keep_alive"] = (inputs, outputs)
        return run


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    # With 0 the threads would leave the mask of the creating thread; see docs/architecture.md.
    options.intra_op_num_threads = max(1, threads)
    options.inter_op_num_threads = 1
    if not ENGINE.alone:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if ENGINE.shared_threads:
        options.use_per_session_threads = False
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL
    return options


def _session(model: bytes, options: Any) -> Any:
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def channel_block() -> int:
    """Channels in a block of the kernels that ONNX Runtime has on this CPU: 8 with AVX2, else 16.

    Told by what it makes of a pool of 8 channels: it is blocked where they fill a block.
    """
    import onnx  # only calibration asks: workers, which load this engine too, do without
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 4, 4]) for name in ("x", "y")]
    pool = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])
    graph = helper.make_graph([pool], "pool", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = _options(1)
    with _temporary_folder() as folder, as_engine_error("onnxruntime: a pool of 8 channels"):
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        _session(model.SerializeToString(), options)
        made = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return 8 if any(node.domain.endswith("nchwc") for node in made.graph.node) else 16


def _split_runs(events: list[dict[str, Any]], runs: int) -> list[list[KernelTime]]:
    """Kernel events grouped by the `model_run` event that spans them."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")
    if len(spans) != runs:
        raise EngineError(f"onnxruntime: the profile holds {len(spans)} runs of {runs}")
    kernels = sorted((e for e in events if e["name"].endswith(_KERNEL_SUFFIX)), key=lambda e: e["ts"])
    grouped: list[list[KernelTime]] = [[] for _ in spans]
    run, until = 0, 0
    for event in kernels:
        if event["ts"] < until:
            continue
        if event.get("args", {}).get("op_name") in ("If", "Loop", "Scan"):
            until = event["ts"] + event["dur"]  # what runs inside has events of its own
        while run + 1 < runs and event["ts"] >= spans[run + 1][0]:
            run += 1
        grouped[run].append(KernelTime(node_of(event["name"].removesuffix(_KERNEL_SUFFIX)), event["dur"] * 1e-6))
    return grouped


ENGINE = OnnxRuntimeEngine()
