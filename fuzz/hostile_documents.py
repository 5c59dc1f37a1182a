"""Hostile plans, tables, machine files and trees, always the same: valid ones with values changed or bytes harmed."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from hostile_models import flip

PLANNED_NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
planned (float[1, 4, 8] x) => (float[1, 4, 8] f)
<float[8, 8] w> {
  a = MatMul (x, w) b = MatMul (a, w) c = MatMul (b, w) d = MatMul (c, w) e = MatMul (d, w) f = MatMul (e, w)
}"""
"""What `PLAN` is a plan of."""
PLAN: dict[str, Any] = {
    "schema_version": 1, "kind": "corepipe-plan", "planner": "by hand",
    "network": {"name": "n", "sha256": "", "layers": 6},
    "workers": [
        {"name": "big2", "config": "big2", "cores": [0, 1]}, {"name": "w", "config": "little1", "cores": [4]},
    ],
    "routes": [
        {"rate_fps": 2.5, "hops": [{"worker": "big2", "layers": [0, 4]}, {"worker": "w", "layers": [4, 6]}]},
        {"rate_fps": 0.5, "hops": [{"worker": "w", "layers": [0, 6], "parts": [
            {"layers": [0, 2], "engine": "openvino", "batch": 2}, {"layers": [2, 6], "batch": 4},
        ]}]},
    ],
    "batch": 4,
    "predicted_fps": 3.0, "bound_fps": 3.5, "given_up": 0.01,
}  # fmt: skip
MACHINE: dict[str, Any] = {
    "description": "m", "fingerprint": "f",
    "clusters": [{"name": "big", "cores": [0, 1]}, {"name": "little", "cores": [4, 5]}],
}  # fmt: skip
ENGINE = {"name": "onnxruntime", "version": "1"}
COSTS: dict[str, Any] = {
    "config": "big1", "layer_s": [0.1, 0.2, 0.3], "layer_busy_s": [0.1, 0.2, 0.4], "segment_s": 1e-4,
    "segment_s_per_byte": 1e-10, "spread": 0.01, "left_out": 0.0, "passes": 3,
}  # fmt: skip
HOP = {"fixed_s": 1e-5, "per_byte_s": 1e-10, "edge_s": 1e-5, "latency_s": 1e-4}
TABLE: dict[str, Any] = {
    "schema_version": 1, "kind": "corepipe-cost-table",
    "network": {"name": "n", "sha256": "0", "layers": ["a", "b", "c"], "cut_bytes": [4, 8, 8, 4], "illegal_cuts": [2]},
    "machine": MACHINE, "engines": [ENGINE, {"name": "ncnn", "version": "2"}],
    "configs": [COSTS, {**COSTS, "config": "little2", "batch": 4}, {**COSTS, "config": "all4", "engine": "ncnn"}],
    "frames": 4, "hop": HOP, "provenance": {"source": "measured", "created": "now", "note": ""},
}  # fmt: skip
SAMPLE = {
    "kind": "conv",
    "op_types": ["Conv"],
    "m": 4,
    "n": 4,
    "k": 4,
    "kernel": [3, 3],
    "strides": [1, 1],
    "dilations": [1, 1],
}
MEASUREMENT = {
    "config": "big1",
    "network": 0,
    "layer_s": [0.1],
    "busy_layer_s": [0.1],
    "whole_s": 0.1,
    "cuts": 2,
    "call_s": 0.0,
}
CALIBRATION: dict[str, Any] = {
    "schema_version": 1, "kind": "corepipe-calibration", "machine": MACHINE, "engine": ENGINE, "set_version": 1, "hop": HOP,
    "networks": [{"index": 0, "layers": [SAMPLE], "end_bytes": 4}], "measurements": [MEASUREMENT],
    "conditions": [{"config": "big1", "coefficients": {"a": 0.1}, "low": {"conv": 0.9}, "high": {"conv": 1.1}}],
    "laws": [{"cluster": "big", "serial": 0.1, "memory_cores": 2.0}],
}  # fmt: skip
PARTIAL_CALIBRATION: dict[str, Any] = {
    "schema_version": 1, "kind": "corepipe-partial-calibration", "set_version": 1, "measurements": [MEASUREMENT], "hop": HOP,
}  # fmt: skip
PARTIAL_PROFILE = {"schema_version": 1, "kind": "corepipe-partial-profile", "configs": [COSTS], "hop": HOP}
MACHINE_FILE = """schema_version = 1
machine = "board"
override = false
emulated = false
quota_cpus = 2.5
[[cluster]]
name = "big"
cores = [[0, 1], "2-3"]
siblings = [[0, 1], [2, 3]]
packages = [0, 1]
capacity = 1.0
core_name = "Cortex-A76"
max_mhz = 2400.0
governor = "performance"
limit_mhz = 2000.0
[[cluster.cache]]
level = 2
size_kib = 512.0
shared_by = 1
[[cluster]]
name = "little"
cpus = "4-7"
capacity = 0.3
"""
_CPU = "sys/devices/system/cpu"
TREE = {
    f"{_CPU}/online": "0-3", f"{_CPU}/present": "0-3", f"{_CPU}/cpu0/cpu_capacity": "1024", f"{_CPU}/cpu1/cpu_capacity": "400",
    f"{_CPU}/cpu2/topology/thread_siblings_list": "2-3", f"{_CPU}/cpu3/topology/thread_siblings_list": "2-3",
    f"{_CPU}/cpu0/topology/physical_package_id": "0", f"{_CPU}/cpu0/cpufreq/cpuinfo_max_freq": "3000000",
    f"{_CPU}/cpu0/cpufreq/scaling_max_freq": "2000000", f"{_CPU}/cpu1/cpufreq/related_cpus": "1 2",
    f"{_CPU}/cpufreq/policy0/related_cpus": "0 1", f"{_CPU}/cpufreq/policy0/scaling_governor": "powersave",
    f"{_CPU}/cpufreq/policy0/scaling_driver": "amd-pstate-epp", f"{_CPU}/cpufreq/policy0/cpuinfo_max_freq": "1800000",
    f"{_CPU}/cpu0/cache/index2/level": "2", f"{_CPU}/cpu0/cache/index2/size": "512K",
    f"{_CPU}/cpu0/cache/index2/shared_cpu_list": "0", f"{_CPU}/cpu0/regs/identification/midr_el1": "0x00000000410fd0b0",
    f"{_CPU}/cpu0/acpi_cppc/highest_perf": "200", f"{_CPU}/cpu3/online": "0", f"{_CPU}/types/intel_core_0/cpulist": "0-1",
    "sys/devices/cpu_core/cpus": "0-1", "sys/devices/cpu_atom/cpus": "2-3", "sys/fs/cgroup/cpu.max": "150000 100000",
    "sys/fs/cgroup/a/cpuset.cpus.effective": "0-2",
    "proc/cpuinfo": "processor: 0\nvendor_id: GenuineIntel\nmodel name: x\ncpu MHz: 2000.5\n\nCPU implementer: 0x41\nCPU part: 0xd03",
    "proc/self/status": "Name: x\nCpus_allowed_list:\t0-3", "proc/self/cgroup": "4:cpu,cpuset:/a\n0::/a/b",
    "proc/self/cpuset": "/a", "proc/mounts": "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0",
    "proc/self/mountinfo": "5 4 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw", "proc/device-tree/model": "Board\0",
}  # fmt: skip
SYSCTL = """hw.nperflevels: 2
hw.perflevel0.physicalcpu: 4
hw.perflevel0.logicalcpu: 4
hw.perflevel0.name: Performance
hw.perflevel0.l2cachesize: 12582912
hw.perflevel0.cpusperl2: 4
hw.perflevel1.physicalcpu: 4
hw.perflevel1.logicalcpu: 4
hw.perflevel1.l1dcachesize: 65536
hw.cpufrequency_max: 3200000000
machdep.cpu.brand_string: Apple M1
"""
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 255, 65_535, 65_536, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**400, 0.5, -0.5, 1e-320, 1e-300, 1e300, 1e308,
    True, None, "", "1", "big1", "NaN", [], {}, [[]], {"a": 1},
)  # fmt: skip
TEXTS = (
    "",
    "x",
    "big",
    "all",
    "big0",
    "big01",
    "big" + "9" * 5000,
    "\0",
    "\u20ac",
    "\ud800",
    "a" * 5000,
    "[/]",
    "-",
    "w",
    "²",
)
RAW = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"\xff\xfe", b"\xef\xbb\xbf",
       b'"\\ud800"', b"[[cluster]]", b"'''", b"1979-05-27T07:32:00Z", b"0x10", b"1_000", b"nan", b"-inf", b"\0", b"cluster.cluster.a = 1")  # fmt: skip
NUMBER_TEXTS = ("0-3", "3-0", "0-65535", "0-65536", "0-99999999999", "1,1,1", "0-7:2", "0-7:0", " 1 , 2 ", "²", "-1", "0x10",
                "max 100000", "0 0", "4 5 6", "9" * 400, "1e9", "nan", "inf", "1\u0660", "0-3,", ",", "", "32K", "0G")  # fmt: skip


PIPE, FOLDER, LINK = b"<pipe>", b"<folder>", b"->"
"""What, as content, makes something else of a file of a tree; a link goes on with where it leads."""
_IN_PLACE = [mark.decode() for mark in (PIPE, FOLDER, LINK + b"loop", LINK + b"..", LINK + b"/dev/zero", LINK + b"/")]


def join_tree(files: dict[str, str]) -> bytes:
    """A tree as one piece of bytes, as `targets` takes it apart."""
    return b"\0\0".join(f"{name}={content}".encode("utf-8", "surrogatepass") for name, content in files.items())


SEEDS: dict[str, list[bytes]] = {
    "plan": [json.dumps(PLAN).encode()],
    "cost-table": [json.dumps(TABLE).encode()],
    "calibration": [json.dumps(CALIBRATION).encode()],
    "partial-calibration": [json.dumps(PARTIAL_CALIBRATION).encode()],
    "partial-profile": [json.dumps(PARTIAL_PROFILE).encode()],
    "machine-file": [MACHINE_FILE.encode()],
    "tree": [join_tree(TREE)],
    "sysctl": [SYSCTL.encode()],
    "cpu-list": [b"0-3,8", b"0-7:2"],
    "options": [b"big4", b"data:1x3x224x224", b"0-3=0.5,cpu7=40%"],
}
"""Valid inputs for each reader."""


_TURNS = [name for name in SEEDS for _ in range(1 if name == "tree" else 4)]
"""A tree takes as long as forty others."""


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document that can be set, as a container and a key."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _changed_json(data: bytes, dice: random.Random) -> bytes:
    document = json.loads(data)
    for _ in range(dice.choice((1, 1, 2, 4))):
        places = list(_places(document))
        if not places:
            break
        container, key = dice.choice(places)
        what = dice.random()
        if what < 0.15:
            del container[key]
        elif what < 0.3 and isinstance(container, dict):
            container[dice.choice((*TEXTS, key + "x"))] = container.pop(key)
        elif what < 0.4 and isinstance(container, list):
            container.extend(container * dice.choice((1, 1, 5)))
        elif what < 0.55:
            other, place = dice.choice(places)
            container[key] = json.loads(json.dumps(other[place]))
        else:
            container[key] = dice.choice((*NUMBERS, *TEXTS))
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _changed_lines(data: bytes, dice: random.Random) -> bytes:
    """Lines of a machine file or of sysctl with other values, doubled, left out, exchanged."""
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(len(lines))
        what = dice.randrange(5)
        if what == 0:
            lines.insert(at, lines[dice.randrange(len(lines))])
        elif what == 1 and len(lines) > 1:
            del lines[at]
        else:
            sign = "=" if "=" in lines[at] else ":"
            key = lines[at].partition(sign)[0]
            values = [json.dumps(v) for v in (*NUMBERS, *TEXTS)] + [*NUMBER_TEXTS, *(f'"{t}"' for t in NUMBER_TEXTS)]
            lines[at] = f"{key}{sign} {dice.choice(values)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _changed_tree(data: bytes, dice: random.Random) -> bytes:
    files = dict(part.partition("=")[::2] for part in data.decode("utf-8", "replace").split("\0\0"))
    for name in [name for name in files if dice.random() < 0.3]:
        del files[name]
    for _ in range(dice.choice((1, 2, 4))):
        name = dice.choice((*TREE, *files))
        files[name] = dice.choice((*NUMBER_TEXTS, *TREE.values(), *TEXTS) if dice.random() < 0.8 else _IN_PLACE)
        if dice.random() < 0.3:
            files[name.replace("cpu0", f"cpu{dice.choice((1, 2, 9, 65535, 65536, 99999))}")] = files.pop(name)
    return join_tree(files)


_CHANGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "machine-file": _changed_lines, "sysctl": _changed_lines, "tree": _changed_tree,
    "cpu-list": lambda data, dice: ",".join(dice.choices(NUMBER_TEXTS, k=dice.choice((1, 2, 3)))).encode(),
    "options": lambda data, dice: dice.choice((b"%s:%s", b"%s=%s", b"%s,%s", b"%s%s"))
    % tuple(t.encode("utf-8", "replace") for t in dice.choices((*NUMBER_TEXTS, *TEXTS, "data", "1x3"), k=2)),
}  # fmt: skip


def mutate(name: str, data: bytes, seed: int) -> bytes:
    """An input for a reader near to `data`: values changed where it is well-formed, bytes where it is not."""
    dice = random.Random(zlib.crc32(data) ^ seed)
    what = dice.random()
    if what < 0.1:
        at = dice.randrange(len(data) + 1)
        return data[:at] + dice.choice(RAW) + data[at + dice.choice((0, 1, 5)) :]
    if what < 0.2:
        return data[: dice.randrange(len(data) + 1)]
    if what < 0.35:
        return flip(data, dice)
    try:
        return _CHANGE.get(name, _changed_json)(data, dice)
    except (ValueError, RecursionError):
        return flip(data, dice)


def hostile_inputs(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` inputs with the name of the reader that each is for, all readers in turns."""
    for number in range(count):
        yield hostile_input(number, seed)


def hostile_input(number: int, seed: int = 0) -> tuple[str, bytes]:
    """One of them."""
    name = _TURNS[number % len(_TURNS)]
    dice = random.Random(f"{seed} {number}")
    data = dice.choice(SEEDS[name])
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        data = mutate(name, data, dice.getrandbits(32))
    return name, data
