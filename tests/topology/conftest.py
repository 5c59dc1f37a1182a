from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2].parent / "shared" / "topologies"


@dataclass(frozen=True)
class Chip:
    """A chip of a made-up tree; every list has an entry per CPU."""

    max_khz: list[int] = field(default_factory=list)
    capacity: list[int] = field(default_factory=list)
    midr: list[int] = field(default_factory=list)
    domains: list[list[int]] = field(default_factory=list)
    siblings: list[list[int]] = field(default_factory=list)
    caches: Mapping[str, str] = field(default_factory=dict)
    governor: str = "schedutil"
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return max(map(len, (self.max_khz, self.capacity, self.midr, self.siblings)))


def midr(implementer: int, part: int) -> int:
    return implementer << 24 | 0xF << 16 | part << 4 | 1


A53, A55, A73, A76, A78, X1 = (midr(0x41, part) for part in (0xD03, 0xD05, 0xD09, 0xD0B, 0xD41, 0xD44))
CHIPS = {
    "kirin970": Chip(
        max_khz=[1844000] * 4 + [2362000] * 4,
        capacity=[462] * 4 + [1024] * 4,
        midr=[A53] * 4 + [A73] * 4,
        domains=[[0, 1, 2, 3], [4, 5, 6, 7]],
        caches={"index0": "1 Data 32K", "index1": "1 Instruction 64K"},
        files={"proc/device-tree/model": "HiKey970\0"},
    ),
    "rk3588": Chip(
        max_khz=[1800000] * 4 + [2400000] * 2 + [2352000] * 2,
        capacity=[530] * 4 + [1024] * 2 + [1003] * 2,
        midr=[A55] * 4 + [A76] * 4,
        domains=[[0, 1, 2, 3], [4, 5], [6, 7]],
        caches={"index0": "1 Data 64K", "index2": "2 Unified 512K", "index3": "3 Unified 3M"},
    ),
    "snapdragon888": Chip(
        max_khz=[1804800] * 4 + [2419200] * 3 + [2841600],
        capacity=[325] * 4 + [828] * 3 + [1024],
        midr=[A55] * 4 + [A78] * 3 + [X1],
        domains=[[0, 1, 2, 3], [4, 5, 6], [7]],
    ),
    "snapdragon855": Chip(
        max_khz=[1785600] * 4 + [2419200] * 3 + [2841600],
        capacity=[384] * 4 + [871] * 3 + [1024],
        midr=[midr(0x51, 0x805)] * 4 + [midr(0x51, 0x804)] * 4,
        domains=[[0, 1, 2, 3], [4, 5, 6], [7]],
    ),
    "pi5": Chip(max_khz=[2400000] * 4, capacity=[1024] * 4, midr=[A76] * 4, domains=[[0, 1, 2, 3]]),
    "one-core": Chip(max_khz=[1000000], midr=[A53]),
    "msm8939": Chip(max_khz=[1113600] * 4 + [1497600] * 4, midr=[A53] * 8, domains=[[0, 1, 2, 3], [4, 5, 6, 7]]),
    "altra": Chip(max_khz=[3000000, 3000000, 2950000, 2900000], midr=[midr(0x41, 0xD0C)] * 4),
    "two-sockets": Chip(
        max_khz=[2600000] * 8,
        midr=[midr(0x48, 0xD01)] * 8,
        domains=[[0, 1, 2, 3], [4, 5, 6, 7]],
        files={f"sys/devices/system/cpu/cpu{n}/topology/physical_package_id": str(n // 4) for n in range(8)},
    ),
    "odroid-n2-old-kernel": Chip(
        max_khz=[1896000] * 2 + [1800000] * 4, midr=[A53] * 2 + [A73] * 4, domains=[[0, 1], [2, 3, 4, 5]]
    ),
}
X86 = "".join(
    f"processor\t: {n}\nvendor_id\t: GenuineIntel\nmodel name\t: Test  CPU\ncpu MHz\t: 900.5\n\n" for n in range(8)
)


def write_tree(root: Path, chip: Chip) -> Path:
    files: dict[str, str] = {}
    everyone = f"0-{chip.count - 1}"
    files["sys/devices/system/cpu/online"] = files["sys/devices/system/cpu/present"] = everyone
    for n in range(chip.count):
        base = f"sys/devices/system/cpu/cpu{n}"
        siblings = next((s for s in chip.siblings if n in s), [n])
        files[f"{base}/topology/thread_siblings_list"] = ",".join(map(str, siblings))
        files[f"{base}/topology/core_id"] = str(siblings[0])
        files[f"{base}/topology/physical_package_id"] = "0"
        if chip.capacity:
            files[f"{base}/cpu_capacity"] = str(chip.capacity[n])
        if chip.midr:
            files[f"{base}/regs/identification/midr_el1"] = f"0x{chip.midr[n]:016x}"
        if chip.max_khz:
            domain = next((d for d in chip.domains if n in d), siblings)
            files[f"{base}/cpufreq/cpuinfo_max_freq"] = files[f"{base}/cpufreq/scaling_max_freq"] = str(chip.max_khz[n])
            files[f"{base}/cpufreq/scaling_cur_freq"] = "600000"
            files[f"{base}/cpufreq/scaling_governor"] = chip.governor
            files[f"{base}/cpufreq/related_cpus"] = " ".join(map(str, domain))
        for index, words in chip.caches.items():
            for name, value in zip(("level", "type", "size"), words.split(), strict=True):
                files[f"{base}/cache/{index}/{name}"] = value
            files[f"{base}/cache/{index}/shared_cpu_list"] = ",".join(map(str, siblings))
    for name, text in (files | dict(chip.files)).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def make_tree() -> Callable[[Path, Chip], Path]:
    return write_tree


@pytest.fixture(scope="session")
def chips() -> Mapping[str, Chip]:
    return CHIPS


@pytest.fixture(scope="session")
def chip() -> type[Chip]:
    return Chip


@pytest.fixture(scope="session")
def x86_cpuinfo() -> str:
    return X86


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], Path]:
    """Unpacks one of the shared trees of real machines."""

    def unpack(name: str) -> Path:
        archive = SHARED / f"{name}.tar.bz2"
        if not archive.exists():
            pytest.skip(f"{archive.name} is not in shared/topologies")
        with tarfile.open(archive) as tar:
            # Python before 3.11.4 has no filters; the members are checked by hand instead.
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            names = [member.name for member in tar.getmembers() if member.isfile() or member.isdir()]
            assert not any(name.startswith("/") or ".." in name.split("/") for name in names)
            tar.extractall(tmp_path, **safe)
        return next(path for path in tmp_path.iterdir() if (path / "sys").is_dir())

    return unpack
