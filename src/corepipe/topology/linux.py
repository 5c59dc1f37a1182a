"""What Linux tells of a machine's CPUs, read from `/sys` and `/proc` or from a saved copy of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from corepipe.errors import TopologyError
from corepipe.topology.cgroup import Limits, read_limits
from corepipe.topology.cpulist import MAX_CPU
from corepipe.topology.cpunames import split_midr
from corepipe.topology.model import Cache
from corepipe.topology.sysfs import parse_cpus, read_bytes_size, read_cpus, read_number, read_text

MAX_KHZ = 20_000_000
_CPUS = "sys/devices/system/cpu"
_THERMAL = "sys/class/thermal"


@dataclass(frozen=True)
class Cpu:
    """One online logical CPU; None or empty where the machine does not tell.

    Attributes:
        siblings: the online logical CPUs of its physical core, itself included, ascending.
        midr: implementer and part of an ARM-architecture core.
        kind: `core`, `atom` or `lowpower` on an Intel hybrid.
        capacity: the scheduler's `cpu_capacity`.
        highest_perf: the firmware's (CPPC) highest performance level.
        limit_khz: the highest frequency allowed at present, against `max_khz` of the hardware.
        governor, driver, preference: cpufreq's scaling governor and driver, and energy performance preference.
        domain: the CPUs that share its clock.
        caches: data and unified ones, by level.
    """

    number: int
    siblings: tuple[int, ...]
    package: int = 0
    midr: tuple[int, int] | None = None
    kind: str = ""
    capacity: int | None = None
    highest_perf: int | None = None
    max_khz: int | None = None
    limit_khz: int | None = None
    current_khz: int | None = None
    governor: str | None = None
    driver: str | None = None
    preference: str | None = None
    domain: tuple[int, ...] = ()
    caches: tuple[Cache, ...] = ()

    @property
    def cap_khz(self) -> int | None:
        """The highest frequency allowed, where that is well below what the hardware can."""
        capped = self.limit_khz and self.max_khz and self.limit_khz < 0.99 * self.max_khz
        return self.limit_khz if capped else None


@dataclass(frozen=True)
class LinuxMachine:
    """Everything read from one tree.

    Attributes:
        cpus: the online CPUs by number.
        offline: present but switched off.
        affinity: the mask of this process, None if unknown.
        limits: of its control group.
        vendor: x86 vendor id (`GenuineIntel`), empty on other architectures.
        description: CPU model or board.
        live: whether it is the running machine.
        throttled: the cooling devices that hold CPUs back at this moment; caps are left out then.
        smt_off: hyperthreads are switched off: CPUs that are offline are no cores.
    """

    cpus: Mapping[int, Cpu]
    offline: tuple[int, ...] = ()
    affinity: frozenset[int] | None = None
    limits: Limits = field(default_factory=Limits)
    vendor: str = ""
    description: str = ""
    live: bool = False
    throttled: tuple[str, ...] = ()
    smt_off: bool = False


def read_linux(root: Path) -> LinuxMachine:
    """Read a tree that holds `sys/` and `proc/`.

    Args:
        root: `/` for the running machine (the process's own affinity mask is then asked for), else a saved tree.

    Raises:
        TopologyError: there is no CPU in the tree, or `root` is not a folder.
    """
    if not os.path.isdir(root):
        raise TopologyError(f"{root}: not a folder; give one that holds sys/ and proc/, or unpack the archive first")
    live = root == Path("/")
    info = _CpuInfo.read(root)
    affinity = _affinity(root, live=live)
    # Some containers show an `online` file of their own making; a live mask holds active CPUs only.
    online, offline = _online(root, info, affinity if live and affinity else frozenset())
    if not online:
        raise TopologyError(
            f"{root}: no CPU found in {_CPUS} or proc/cpuinfo; give a folder that holds sys/ and proc/, "
            f"or describe the machine in a machine file, to plan for it and to simulate"
        )
    kinds = _intel_kinds(root)
    policies = _policies(root, online)
    cpus = {n: _read_cpu(root, n, frozenset(online), kinds.get(n, ""), policies.get(n), info) for n in online}
    cpus = {n: replace(cpu, siblings=_mutual(cpu, cpus)) for n, cpu in cpus.items()}
    throttled = cooling_devices_at_work(root)
    if throttled or _is_hidden(root / _THERMAL):
        # Thermal control lowers the same cap as a user does, and moves it all the time.
        cpus = {n: replace(cpu, limit_khz=None) for n, cpu in cpus.items()}
    return LinuxMachine(
        cpus=_without_doubtful_midr(cpus, info),
        offline=offline,
        affinity=affinity,
        limits=read_limits(root),
        vendor=info.vendor,
        description=_description(root, info),
        live=live,
        throttled=throttled,
        smt_off=read_text(root / _CPUS / "smt/control") in ("off", "forceoff"),
    )


@dataclass(frozen=True)
class _CpuInfo:
    """`/proc/cpuinfo`: `blocks` by CPU number, `rest` what belongs to no CPU (32-bit ARM)."""

    blocks: Mapping[int, Mapping[str, str]]
    rest: Mapping[str, str]

    @classmethod
    def read(cls, root: Path) -> _CpuInfo:
        blocks: dict[int, dict[str, str]] = {}
        rest: dict[str, str] = {}
        block = rest
        for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
            key, colon, value = (part.strip() for part in line.partition(":"))
            if not colon:
                block = rest
            elif key == "processor" and re.fullmatch(r"[0-9]{1,5}", value, re.ASCII) and int(value) <= MAX_CPU:
                block = blocks.setdefault(int(value), {})
            else:
                block.setdefault(key, value)
        return cls(blocks, rest)

    @property
    def vendor(self) -> str:
        return next((b["vendor_id"] for b in self.blocks.values() if "vendor_id" in b), "")

    def midr(self, cpu: int | None) -> tuple[int, int] | None:
        block = self.rest if cpu is None else self.blocks.get(cpu, {})
        words = block.get("CPU implementer", ""), block.get("CPU part", "")
        if not all(re.fullmatch(r"0x[0-9a-fA-F]{1,3}", word) for word in words):
            return None
        return int(words[0], 16), int(words[1], 16)

    def current_khz(self, cpu: int) -> int | None:
        text = self.blocks.get(cpu, {}).get("cpu MHz", "")
        return round(float(text) * 1000) or None if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,6})?", text) else None


def _online(root: Path, info: _CpuInfo, active: frozenset[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The online CPUs, of which some are known to be, and those that are present but offline."""
    folder = root / _CPUS
    listed = []
    try:
        for entry in os.scandir(folder):
            match = re.fullmatch(r"cpu([0-9]{1,5})", entry.name, re.ASCII)
            if match and int(match[1]) <= MAX_CPU:
                listed.append(int(match[1]))
    except OSError:
        pass
    known = set(listed or info.blocks)
    off = {n for n in listed if read_number(folder / f"cpu{n}/online", least=0) == 0}
    online = known & {*(read_cpus(folder / "online") or known - off), *active} or known
    present = set(read_cpus(folder / "present") or known)
    return tuple(sorted(online)), tuple(sorted(present & known - online))


def _intel_kinds(root: Path) -> dict[int, str]:
    """`core`, `atom` or `lowpower` by CPU, on Intel hybrids."""
    kinds: dict[int, str] = {}
    for kind in ("core", "atom", "lowpower"):
        folders = [root / f"sys/devices/cpu_{kind}", *_children(root / _CPUS / "types", f"intel_{kind}")]
        for folder in folders:
            for name in ("cpus", "cpulist"):
                for cpu in read_cpus(folder / name) or ():
                    kinds.setdefault(cpu, kind)
    return kinds


def _children(folder: Path, prefix: str) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        if name.startswith(prefix):
            yield folder / name


def _is_hidden(folder: Path) -> bool:
    """Whether it may not be looked into, as on phones."""
    try:
        os.listdir(folder)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _policies(root: Path, online: tuple[int, ...]) -> dict[int, Path]:
    """The cpufreq folder of each CPU: its own, or the one of a policy or CPU that names it."""
    folder = root / _CPUS
    named: dict[int, Path] = {}
    own = {n: folder / f"cpu{n}/cpufreq" for n in online if (folder / f"cpu{n}/cpufreq").is_dir()}
    for policy in (*_children(folder / "cpufreq", "policy"), *own.values()):
        for cpu in _domain(policy):
            named.setdefault(cpu, policy)
    return named | own


def _domain(policy: Path) -> tuple[int, ...]:
    return read_cpus(policy / "related_cpus") or read_cpus(policy / "affected_cpus") or ()


def _read_cpu(root: Path, number: int, online: frozenset[int], kind: str, policy: Path | None, info: _CpuInfo) -> Cpu:
    folder = root / _CPUS / f"cpu{number}"
    topology = folder / "topology"
    siblings = read_cpus(topology / "thread_siblings_list") or read_cpus(topology / "core_cpus_list") or ()
    midr = read_number(folder / "regs/identification/midr_el1", most=2**64)
    cpu = Cpu(
        number=number,
        siblings=tuple(n for n in siblings if n in online),
        package=read_number(topology / "physical_package_id", least=0, most=2**31) or 0,
        midr=split_midr(midr) if midr else info.midr(number),
        kind=kind,
        capacity=read_number(folder / "cpu_capacity", most=2**20),
        highest_perf=read_number(folder / "acpi_cppc/highest_perf", most=2**32),
        current_khz=info.current_khz(number),
        caches=_caches(folder / "cache"),
    )
    if policy is None:
        return cpu
    return replace(
        cpu,
        max_khz=read_number(policy / "cpuinfo_max_freq", most=MAX_KHZ),
        limit_khz=read_number(policy / "scaling_max_freq", most=MAX_KHZ),
        current_khz=read_number(policy / "scaling_cur_freq", most=MAX_KHZ) or cpu.current_khz,
        governor=_word(policy / "scaling_governor"),
        driver=_word(policy / "scaling_driver"),
        preference=_word(policy / "energy_performance_preference"),
        domain=tuple(n for n in _domain(policy) if n in online),
    )


def cooling_devices_at_work(root: Path = Path("/")) -> tuple[str, ...]:
    """Kinds of cooling devices that slow CPUs down at the moment, as the system tells; not all systems do."""
    found = []
    for device in _children(root / _THERMAL, "cooling_device"):
        kind = read_text(device / "type") or ""
        if re.match(r"thermal-cpufreq-|cpufreq-|Processor$", kind) and read_number(device / "cur_state"):
            found.append(kind)
    return tuple(dict.fromkeys(found))


def _word(path: Path) -> str | None:
    text = read_text(path) or ""
    return text if re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", text, re.ASCII) else None


def _caches(folder: Path) -> tuple[Cache, ...]:
    caches = []
    for index in _children(folder, "index"):
        level, size = read_number(index / "level", most=9), read_bytes_size(index / "size")
        if level and size and read_text(index / "type") != "Instruction":
            caches.append(Cache(level, size, len(read_cpus(index / "shared_cpu_list") or (0,))))
    return tuple(sorted(caches, key=lambda cache: (cache.level, cache.size_bytes)))


def _mutual(cpu: Cpu, cpus: Mapping[int, Cpu]) -> tuple[int, ...]:
    """The siblings of a CPU if all of them agree, else itself alone."""
    agreed = cpu.number in cpu.siblings and all(cpus[n].siblings == cpu.siblings for n in cpu.siblings)
    return cpu.siblings if agreed else (cpu.number,)


def _without_doubtful_midr(cpus: dict[int, Cpu], info: _CpuInfo) -> dict[int, Cpu]:
    """Give the one MIDR of an old 32-bit `/proc/cpuinfo` to all CPUs, unless they are visibly not alike."""
    midr = info.midr(None)
    alike = len({c.max_khz for c in cpus.values()} - {None}) < 2 and len({c.capacity for c in cpus.values()}) < 2
    if midr is None or not alike or any(cpu.midr for cpu in cpus.values()):
        return cpus
    return {n: replace(cpu, midr=midr) for n, cpu in cpus.items()}


def _affinity(root: Path, *, live: bool) -> frozenset[int] | None:
    if live and hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    for line in (read_text(root / "proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "Cpus_allowed_list":
            return frozenset(parse_cpus(value) or ()) or None
    return None


def _description(root: Path, info: _CpuInfo) -> str:
    """CPU model on x86, board elsewhere."""
    block = next(iter(info.blocks.values()), {})
    candidates = (
        re.sub(r"\s+", " ", block.get("model name", "")) if info.vendor else "",
        read_text(root / "proc/device-tree/model"),
        read_text(root / "sys/firmware/devicetree/base/model"),
        info.rest.get("Hardware"),
        block.get("Hardware"),
        " ".join(filter(None, (read_text(root / f"sys/class/dmi/id/{n}") for n in ("sys_vendor", "product_name")))),
        block.get("model name"),
        info.rest.get("Processor"),
    )
    text = next((c for c in candidates if c), "")
    return "".join(c for c in text if c.isprintable())[:120]
