from __future__ import annotations

from dataclasses import replace

import pytest

from corepipe.errors import TopologyError
from corepipe.runtime.stream import Stream


def test_a_machine_that_is_not_at_hand_runs_nothing(chain, here, make_plan):
    plan = make_plan(chain, [(1.0, [(0, 0, len(chain.layers))])])
    with pytest.raises(TopologyError, match="not at hand"):
        Stream(chain, plan, replace(here, at_hand=False, pinnable=False))
    with Stream(chain, plan, replace(here, pinnable=False)) as stream:
        assert len(stream.worker_pids) == 1
