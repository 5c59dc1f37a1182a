"""Names of ARM-architecture cores from the implementer and part fields of the MIDR.

Sources: Arm's and the vendors' technical reference manuals, as collected in Linux (`arch/arm64/include/asm/cputype.h`)
and util-linux (`lscpu-arm.c`).
"""

from __future__ import annotations

IN_ORDER_PER_MHZ = 0.55
"""Work per MHz of an in-order core relative to the out-of-order core beside it.

The middle of the `capacity-dmips-mhz` pairs in Linux's device trees: 485 (RK3399), 530 (RK3588), 592 (HiKey 960,
Amlogic G12B) and 611 (SDM845), each to 1024.
"""

_ARM = {
    0x926: "ARM926", 0xB36: "ARM1136", 0xB76: "ARM1176", 0xC05: "Cortex-A5", 0xC07: "Cortex-A7", 0xC08: "Cortex-A8",
    0xC09: "Cortex-A9", 0xC0D: "Cortex-A17", 0xC0E: "Cortex-A17", 0xC0F: "Cortex-A15", 0xD01: "Cortex-A32",
    0xD02: "Cortex-A34", 0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD06: "Cortex-A65",
    0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77", 0xD0E: "Cortex-A76AE", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE", 0xD43: "Cortex-A65AE", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710",
    0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4A: "Neoverse-E1", 0xD4B: "Cortex-A78C", 0xD4C: "Cortex-X1C",
    0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3", 0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720",
    0xD82: "Cortex-X4", 0xD83: "Neoverse-V3AE", 0xD84: "Neoverse-V3", 0xD85: "Cortex-X925", 0xD87: "Cortex-A725",
    0xD88: "Cortex-A520AE", 0xD89: "Cortex-A720AE", 0xD8A: "C1-Nano", 0xD8B: "C1-Pro", 0xD8C: "C1-Ultra",
    0xD8E: "Neoverse-N3", 0xD8F: "Cortex-A320", 0xD90: "C1-Premium",
}  # fmt: skip
_BROADCOM = {0x100: "Brahma-B53", 0x516: "ThunderX2"}
_CAVIUM = {0x0A1: "ThunderX", 0x0A2: "ThunderX-81XX", 0x0A3: "ThunderX-83XX", 0x0AF: "ThunderX2", 0x0B8: "ThunderX3"}
_FUJITSU = {0x001: "A64FX", 0x003: "MONAKA"}
_HISILICON = {0xD01: "TaiShan-v110", 0xD02: "TaiShan-v120", 0xD40: "Cortex-A76", 0xD41: "Cortex-A77"}
_NVIDIA = {0x000: "Denver", 0x003: "Denver-2", 0x004: "Carmel", 0x010: "Olympus"}
_QUALCOMM = {
    0x001: "Oryon", 0x002: "Oryon-L", 0x00F: "Scorpion", 0x02D: "Scorpion", 0x04D: "Krait", 0x06F: "Krait",
    0x201: "Kryo", 0x205: "Kryo", 0x211: "Kryo", 0x800: "Kryo-2xx-Gold", 0x801: "Kryo-2xx-Silver",
    0x802: "Kryo-3xx-Gold", 0x803: "Kryo-3xx-Silver", 0x804: "Kryo-4xx-Gold", 0x805: "Kryo-4xx-Silver",
    0xC00: "Falkor", 0xC01: "Saphira",
}  # fmt: skip
_SAMSUNG = {0x001: "Exynos-M1", 0x002: "Exynos-M3", 0x003: "Exynos-M4", 0x004: "Exynos-M5"}
_APPLE = {
    0x020: "Icestorm-A14", 0x021: "Firestorm-A14", 0x022: "Icestorm-M1", 0x023: "Firestorm-M1",
    0x024: "Icestorm-M1-Pro", 0x025: "Firestorm-M1-Pro", 0x028: "Icestorm-M1-Max", 0x029: "Firestorm-M1-Max",
    0x030: "Blizzard-A15", 0x031: "Avalanche-A15", 0x032: "Blizzard-M2", 0x033: "Avalanche-M2",
    0x034: "Blizzard-M2-Pro", 0x035: "Avalanche-M2-Pro", 0x038: "Blizzard-M2-Max", 0x039: "Avalanche-M2-Max",
    0x046: "Sawtooth-M11", 0x048: "Sawtooth-M3-Max", 0x049: "Everest-M3-Max",
}  # fmt: skip
_AMPERE = {0x000: "X-Gene", 0xAC3: "Ampere-1", 0xAC4: "Ampere-1a", 0xAC5: "Ampere-1b"}
_PHYTIUM = {0x303: "FTC310", 0x660: "FTC660", 0x661: "FTC661", 0x662: "FTC662", 0x663: "FTC663", 0x664: "FTC664",
            0x862: "FTC862"}  # fmt: skip

_PARTS: dict[int, tuple[str, dict[int, str]]] = {
    0x41: ("ARM", _ARM),
    0x42: ("Broadcom", _BROADCOM),
    0x43: ("Cavium", _CAVIUM),
    0x46: ("Fujitsu", _FUJITSU),
    0x48: ("HiSilicon", _HISILICON),
    0x4E: ("NVIDIA", _NVIDIA),
    0x50: ("APM", {0x000: "X-Gene"}),
    0x51: ("Qualcomm", _QUALCOMM),
    0x53: ("Samsung", _SAMSUNG),
    0x56: ("Marvell", {0x131: "Feroceon-88FR131", 0x581: "PJ4", 0x584: "PJ4B-MP"}),
    0x61: ("Apple", _APPLE),
    0x66: ("Faraday", {0x526: "FA526", 0x626: "FA626"}),
    0x6D: ("Microsoft", {0xD49: "Azure-Cobalt-100"}),
    0x70: ("Phytium", _PHYTIUM),
    0xC0: ("Ampere", _AMPERE),
}

_IN_ORDER = frozenset(
    {"Cortex-A5", "Cortex-A7", "Cortex-A32", "Cortex-A34", "Cortex-A35", "Cortex-A53", "Cortex-A55", "Cortex-A320"}
    | {"Cortex-A510", "Cortex-A520", "Cortex-A520AE", "C1-Nano"}
    | {"Kryo-2xx-Silver", "Kryo-3xx-Silver", "Kryo-4xx-Silver", "FTC310"}
)


def core_name(implementer: int, part: int) -> str:
    """The marketing name of a core, such as `Cortex-A76`.

    Args:
        implementer: bits 31-24 of the MIDR.
        part: bits 15-4 of the MIDR.

    Returns:
        The name; for an unknown part the vendor and the number (`ARM-0xfff`); empty for an unknown vendor.
    """
    if implementer not in _PARTS:
        return ""
    vendor, parts = _PARTS[implementer]
    return parts.get(part, f"{vendor}-0x{part:03x}")


def split_midr(midr: int) -> tuple[int, int]:
    """The implementer and part fields of a MIDR value."""
    return midr >> 24 & 0xFF, midr >> 4 & 0xFFF


def per_mhz(implementer: int, part: int) -> float:
    """Rough work per MHz relative to an out-of-order core: 1.0, or `IN_ORDER_PER_MHZ`."""
    return IN_ORDER_PER_MHZ if core_name(implementer, part) in _IN_ORDER else 1.0
