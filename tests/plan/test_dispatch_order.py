from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corepipe.errors import PlanError
from corepipe.plan import dispatch_order


def test_equal_rates_take_turns():
    assert list(islice(dispatch_order([1.0, 1.0, 1.0]), 6)) == [0, 1, 2, 0, 1, 2]


def test_the_order_is_smooth_not_in_blocks():
    assert list(islice(dispatch_order([30.0, 10.0]), 8)) == [0, 0, 1, 0, 0, 0, 1, 0]


def test_a_rate_of_zero_gets_no_frame():
    assert set(islice(dispatch_order([0.0, 2.0, 0.0, 1.0]), 100)) == {1, 3}


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=6).filter(lambda rates: sum(rates) > 1e-3))
def test_counts_follow_the_rates(rates):
    shares = np.array(rates) / sum(rates)
    counts = np.zeros(len(rates))
    for frames, route in enumerate(islice(dispatch_order(rates), 200), 1):
        counts[route] += 1
        assert np.abs(counts - frames * shares).max() <= len(rates)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_the_order_is_repeatable(rates):
    assert list(islice(dispatch_order(rates), 50)) == list(islice(dispatch_order(rates), 50))


@pytest.mark.parametrize("rates", [[], [0.0], [1.0, -1.0], [float("nan")], [float("inf")]])
def test_senseless_rates_are_refused(rates):
    with pytest.raises(PlanError, match="cannot dispatch"):
        dispatch_order(rates)
