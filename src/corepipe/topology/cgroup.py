"""What a Linux control group (version 1 or 2) lets this process use: a CPU set and a share of CPU time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from corepipe.topology.sysfs import read_cpus, read_text


@dataclass(frozen=True)
class Limits:
    """`cpuset`: the CPUs that the group may use; `quota_cpus`: CPUs' worth of time; None where there is no limit."""

    cpuset: frozenset[int] | None = None
    quota_cpus: float | None = None


@dataclass(frozen=True)
class _Mount:
    """A mounted hierarchy: `controllers` is empty for version 2; `top` is the group that the mount point shows."""

    point: str
    top: str
    controllers: frozenset[str]


def read_limits(root: Path) -> Limits:
    """The limits that hold for the process in `proc/self` of a tree; anything unreadable counts as no limit."""
    cpuset: frozenset[int] | None = None
    for folder in group_folders(root, "cpuset"):
        cpuset = cpuset or _cpuset(folder)
    quotas = [quota for folder in group_folders(root, "cpu") for quota in _quota(folder)]
    return Limits(cpuset, min(quotas, default=None))


def group_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups that have a say in what a controller gives, nearest first.

    Args:
        root: where `proc` and `sys` are.
        controller: `cpu`, `cpuset`, `memory`.
    """
    groups = _groups(root)
    for mount in _mounts(root):
        if mount.controllers and controller not in mount.controllers:
            continue
        path = groups.get(controller if mount.controllers else "", groups.get("cpuset-file", "/"))
        yield from _upwards(root, mount, path)


def _groups(root: Path) -> dict[str, str]:
    """Group path by controller; version 2 is under the empty name."""
    groups: dict[str, str] = {}
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            groups.update(dict.fromkeys(parts[1].split(","), parts[2]))
    alone = read_text(root / "proc/self/cpuset")
    if alone and alone.startswith("/"):
        groups["cpuset-file"] = alone
    return groups


def _mounts(root: Path) -> Iterator[_Mount]:
    known = False
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            known = True
            yield _mount(kind[0], fields[4], fields[3], kind[2])
    if known:
        return
    for line in (read_text(root / "proc/mounts") or "").splitlines():
        fields = line.split(" ")
        if len(fields) >= 4 and fields[2] in ("cgroup", "cgroup2"):
            known = True
            yield _mount(fields[2], fields[1], "/", fields[3])
    if not known:
        yield _Mount("/sys/fs/cgroup", "/", frozenset())
        yield _Mount("/sys/fs/cgroup/cpuset", "/", frozenset({"cpuset"}))
        yield _Mount("/sys/fs/cgroup/cpu", "/", frozenset({"cpu"}))
        yield _Mount("/sys/fs/cgroup/memory", "/", frozenset({"memory"}))


def _mount(kind: str, point: str, top: str, options: str) -> _Mount:
    names = frozenset(options.split(",")) if kind == "cgroup" else frozenset[str]()
    return _Mount(_unescape(point), _unescape(top), names)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def _upwards(root: Path, mount: _Mount, group: str) -> Iterator[Path]:
    """The group's folder and its parents up to the mount point, nearest first."""
    base = root / mount.point.strip("/")
    top, path = PurePosixPath(mount.top), PurePosixPath(group)
    inside = path.relative_to(top) if path.is_relative_to(top) else PurePosixPath(".")
    if ".." in inside.parts or ".." in PurePosixPath(mount.point).parts:
        inside = PurePosixPath(".")
    for folder in (inside, *inside.parents) if inside.parts else (inside,):
        yield base / folder


def _cpuset(folder: Path) -> frozenset[int] | None:
    for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus", "cpus"):
        cpus = read_cpus(folder / name)
        if cpus:
            return frozenset(cpus)
    return None


def _quota(folder: Path) -> list[float]:
    words = (read_text(folder / "cpu.max") or "").split()
    if len(words) != 2:
        words = [(read_text(folder / name) or "").strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if all(re.fullmatch(r"[0-9]{1,15}", word, re.ASCII) for word in words) and all(map(int, words)):
        return [int(words[0]) / int(words[1])]
    return []
