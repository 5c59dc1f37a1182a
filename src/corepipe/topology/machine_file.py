"""Machine files: TOML that describes a machine which is not at hand, or overrides what was detected here."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from corepipe.document import Part, read_limited
from corepipe.errors import DocumentError, UnknownNameError, UsageError
from corepipe.topology.cpulist import MAX_CPU, parse_cpu_list
from corepipe.topology.model import ALL_CORES, Cache, Topology

ENVIRONMENT = "COREPIPE_MACHINE"
"""The environment variable that names a machine file."""
MAX_FILE_BYTES = 2**20

_CpuNumber = Annotated[int, Field(ge=0, le=MAX_CPU, strict=True)]


def _cpus(value: Any) -> Any:
    """`"0-3"` as well as `[0, 1, 2, 3]`."""
    try:
        return parse_cpu_list(value) if isinstance(value, str) else value
    except UsageError as error:
        raise ValueError(str(error)) from None


def _not_reserved(name: str) -> str:
    if name == ALL_CORES:
        raise ValueError(f"the name {ALL_CORES!r} is reserved for all cores together")
    return name


class _FileCache(Part):
    level: Annotated[int, Field(ge=1, le=9)]
    size_kib: Annotated[float, Field(gt=0, le=2**30)]
    shared_by: Annotated[int, Field(ge=1, le=MAX_CPU)] = 1


class FileCluster(Part):
    """One `[[cluster]]`; None where the file does not say."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z_-]*$", max_length=32), AfterValidator(_not_reserved)]
    cpus: Annotated[tuple[_CpuNumber, ...], BeforeValidator(_cpus)] = ()
    cores: tuple[Annotated[tuple[_CpuNumber, ...], BeforeValidator(_cpus), Field(min_length=1)], ...] = ()
    siblings: tuple[Annotated[tuple[_CpuNumber, ...], BeforeValidator(_cpus)], ...] = ()
    packages: tuple[Annotated[int, Field(ge=0)], ...] = ()
    capacity: Annotated[float, Field(gt=0, le=1)] | None = None
    core_name: Annotated[str, Field(max_length=120)] | None = None
    max_mhz: Annotated[float, Field(gt=0, le=20_000)] | None = None
    governor: Annotated[str, Field(max_length=32)] | None = None
    limit_mhz: Annotated[float, Field(gt=0, le=20_000)] | None = None
    cache: tuple[_FileCache, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.cpus) == bool(self.cores):
            raise ValueError(f"cluster {self.name!r} needs either cpus or cores, and not both, with one CPU at least")
        for key in ("siblings", "packages"):
            given = len(getattr(self, key))
            if given not in (0, len(self.groups)):
                raise ValueError(f"cluster {self.name!r}: {key} needs {len(self.groups)} entries, has {given}")
        return self

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The logical CPUs of each core."""
        return tuple(tuple(sorted(c)) for c in self.cores) or tuple((cpu,) for cpu in sorted(self.cpus))

    @property
    def all_cpus(self) -> tuple[int, ...]:
        """All its logical CPUs."""
        return tuple(cpu for core in self.groups for cpu in core)

    @property
    def caches(self) -> tuple[Cache, ...]:
        """Its caches by level, none where the file does not say."""
        found = (Cache(c.level, round(c.size_kib * 1024), c.shared_by) for c in self.cache or ())
        return tuple(sorted(found, key=lambda c: c.level))


class MachineFile(Part):
    """The contents of a machine file; see docs/topology.md for the keys."""

    schema_version: Literal[1] = 1
    machine: Annotated[str, Field(max_length=120)] | None = None
    override: bool = False
    emulated: bool = False
    quota_cpus: Annotated[float, Field(gt=0)] | None = None
    cluster: tuple[FileCluster, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [c.name for c in self.cluster]
        if len(set(names)) != len(names):
            raise ValueError("a cluster name appears twice")
        cpus = [cpu for c in self.cluster for cpu in c.all_cpus]
        if len(set(cpus)) != len(cpus):
            raise ValueError("a CPU appears twice")
        told = all(c.capacity for c in self.cluster) or all(c.max_mhz for c in self.cluster)
        if not self.override and len(self.cluster) > 1 and not told:
            raise ValueError("every cluster needs a capacity (or every one a max_mhz to estimate it from)")
        return self

    @classmethod
    def from_toml(cls, text: str, source: str = "<text>") -> Self:
        """Parse and check a machine file.

        Raises:
            DocumentError: not TOML, an unknown key (with the nearest known one), or a value out of range.
        """
        try:
            data = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise DocumentError(f"{source}: not a machine file: not valid TOML ({error})") from None
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise DocumentError(f"{source}: invalid machine file: {_explain(error)}; see docs/topology.md") from None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a machine file.

        Raises:
            DocumentError: it cannot be read, is too large, or `from_toml` refuses it.
        """
        data = read_limited(path, MAX_FILE_BYTES, "machine file")
        try:
            return cls.from_toml(data.decode("utf-8-sig"), str(path))
        except UnicodeDecodeError as error:
            raise DocumentError(f"{path}: not a machine file: not UTF-8 text ({error})") from None


def to_toml(topology: Topology, *, override: bool = False) -> str:
    """Write a topology as a machine file; reading it back gives the same clusters.

    What changes by the moment is left out: current frequencies, warnings, what is hidden.

    Args:
        topology: any.
        override: whether the file is to be laid over the machine that reads it.
    """
    lines = ["schema_version = 1", f"machine = {_quoted(topology.machine)}"]
    lines += ["override = true"] if override else []
    lines += ["emulated = true"] if topology.emulated else []
    lines += [f"quota_cpus = {float(topology.quota_cpus)!r}"] if topology.quota_cpus is not None else []
    for c in topology.clusters:
        lines += ["", "[[cluster]]", f"name = {_quoted(c.name)}"]
        if all(len(core.cpus) == 1 for core in c.cores):
            lines.append(f"cpus = {list(c.cpus)}")
        else:
            lines.append(f"cores = {[list(core.cpus) for core in c.cores]}")
        if any(core.siblings != core.cpus for core in c.cores):
            lines.append(f"siblings = {[list(core.siblings) for core in c.cores]}")
        if any(core.package for core in c.cores):
            lines.append(f"packages = {[core.package for core in c.cores]}")
        lines.append(f"capacity = {float(c.capacity)!r}")
        lines += [f"core_name = {_quoted(c.core_name)}"] if c.core_name else []
        lines += [f"max_mhz = {float(c.max_mhz)!r}"] if c.max_mhz is not None else []
        lines += [f"governor = {_quoted(c.governor)}"] if c.governor is not None else []
        lines += [f"limit_mhz = {float(c.limit_mhz)!r}"] if c.limit_mhz is not None else []
        for cache in c.caches:
            size = f"size_kib = {cache.size_bytes / 1024!r}"
            lines += ["", "[[cluster.cache]]", f"level = {cache.level}", size, f"shared_by = {cache.shared_by}"]
    return "\n".join(lines) + "\n"


def _explain(error: ValidationError) -> str:
    """One problem in words with its place; a mistyped key goes before what is missing for want of it."""
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    place = ".".join(map(str, problem["loc"])) or "top level"
    if problem["type"] != "extra_forbidden":
        return f"{place}: {problem['msg']}"
    depth = sum(isinstance(part, str) for part in problem["loc"])
    model = (MachineFile, FileCluster, _FileCache)[min(depth, 3) - 1]
    return f"{UnknownNameError('key', str(problem['loc'][-1]), model.model_fields)} at {place}"


def _quoted(text: str) -> str:
    clean = text.encode("utf-8", "replace").decode()
    return json.dumps(clean, ensure_ascii=False).replace("\x7f", "\\u007f")


def default_path() -> Path | None:
    """The machine file that the environment names, if it names one."""
    value = os.environ.get(ENVIRONMENT, "").strip()
    return Path(value) if value else None
