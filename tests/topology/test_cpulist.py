from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepipe.errors import UsageError
from corepipe.topology import format_cpu_list, parse_cpu_list
from corepipe.topology.cpulist import name_cpus
from corepipe.topology.cpunames import core_name, per_mhz, split_midr


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0", (0,)), ("0-3,8", (0, 1, 2, 3, 8)), (" 8 , 0-1 ", (0, 1, 8)), ("0-7:2", (0, 2, 4, 6)), ("1,1", (1,))],
)
def test_parse(text, cpus):
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    "text", ["", "a", "3-1", "0-", "-1", "1,,2", "0-99999999", "0x1", "1.5", "²", "9" * 400, "0-3:0"]
)
def test_refuse(text):
    with pytest.raises(UsageError, match="write numbers and ranges"):
        parse_cpu_list(text)


def test_refuse_the_same_again_and_again():
    with pytest.raises(UsageError, match="write numbers and ranges"):
        parse_cpu_list("0-65535," * 10_000 + "0")
    assert len(parse_cpu_list("0-65535")) == 65536


@given(st.sets(st.integers(0, 300), min_size=1))
def test_round_trip(cpus):
    assert parse_cpu_list(format_cpu_list(cpus)) == tuple(sorted(cpus))


@given(st.text(max_size=20))
def test_any_text(text):
    with suppress(UsageError):
        assert parse_cpu_list(text)


def test_in_words():
    assert name_cpus([3]) == "CPU 3"
    assert name_cpus([0, 1, 2, 8]) == "CPUs 0-2,8"


@pytest.mark.parametrize(
    ("implementer", "part", "name"),
    [
        (0x41, 0xD0B, "Cortex-A76"),
        (0x41, 0xD03, "Cortex-A53"),
        (0x51, 0x805, "Kryo-4xx-Silver"),
        (0x61, 0x022, "Icestorm-M1"),
        (0x41, 0xFFF, "ARM-0xfff"),
        (0x01, 0x001, ""),
    ],
)
def test_core_names(implementer, part, name):
    assert core_name(implementer, part) == name


def test_midr():
    assert split_midr(0x00000000414FD0B1) == (0x41, 0xD0B)
    assert per_mhz(0x41, 0xD03) < per_mhz(0x41, 0xD09) == 1
