from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepipe.emulate import parse_slow
from corepipe.emulate.speeds import check_speeds, format_slow
from corepipe.errors import EmulationError, UsageError

SPEEDS = st.integers(1, 99).map(lambda percent: percent / 100)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1:0.4", {1: 0.4}),
        ("4-7:0.4", {4: 0.4, 5: 0.4, 6: 0.4, 7: 0.4}),
        ("1:0.4,2:0.5", {1: 0.4, 2: 0.5}),
        (" 1 : .4 , 2:0.5", {1: 0.4, 2: 0.5}),
        ("0,2-3:0.4,1:1", {0: 0.4, 2: 0.4, 3: 0.4, 1: 1.0}),
    ],
)
def test_parses(text: str, expected: dict[int, float]) -> None:
    assert parse_slow(text) == expected


def test_several_options_are_put_together() -> None:
    assert parse_slow("1:0.4", "2-3:0.5") == {1: 0.4, 2: 0.5, 3: 0.5}
    assert parse_slow() == {}


@pytest.mark.parametrize(
    "text",
    ["", "1", "1:", ":0.4", "a:0.4", "1:fast", "1:nan", "1:inf", "1:-0.4", "1:1e-1", "3-1:0.4", "1:0.4,", "1:0.4,1:0.5",
     "0-3:0.4,2:0.5", "1:0.4:0.5", "0-99999999:0.4", "1;0.4", "-1:0.4", "0-7:2:0.4", "1:٠.٤"],
)  # fmt: skip
def test_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="--slow"):
        parse_slow(text)


@given(st.dictionaries(st.integers(0, 500), SPEEDS, min_size=1, max_size=20))
def test_round_trip(speeds: dict[int, float]) -> None:
    assert parse_slow(format_slow(speeds)) == speeds


@given(st.text(max_size=20) | st.text("0123456789:.,- ", max_size=20))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        speeds = parse_slow(text)
    except UsageError:
        return
    assert speeds
    assert all(cpu >= 0 and speed >= 0 for cpu, speed in speeds.items())


@pytest.mark.parametrize("speed", [0.0, 0.05, 1.0, 1.4, -0.4, float("nan"), float("inf")])
def test_speeds_out_of_range_are_refused(speed: float) -> None:
    with pytest.raises(EmulationError, match=r"CPU 3 .* ask for a speed from 0\.06 to 0\.99"):
        check_speeds({2: 0.5, 3: speed}, lowest=0.06)


def test_speeds_in_range_pass() -> None:
    check_speeds({1: 0.06, 2: 0.99}, lowest=0.06)
    with pytest.raises(EmulationError, match="no CPU"):
        check_speeds({}, lowest=0.06)
