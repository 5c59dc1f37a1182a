from __future__ import annotations

from dataclasses import replace

import pytest

from corepipe.api import engine_name
from corepipe.cost.calibrate import calibrate
from corepipe.cost.profile import profile
from corepipe.errors import TopologyError


def test_a_machine_that_is_not_at_hand_is_not_measured(chain, here):
    board = replace(here, at_hand=False, pinnable=False, source="board.toml")
    with pytest.raises(TopologyError, match=r"board\.toml: describes a machine that is not at hand"):
        profile(chain, board, engine_name())
    with pytest.raises(TopologyError, match="not at hand"):
        calibrate(board, engine_name())
