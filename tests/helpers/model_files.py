"""Models that are to be refused."""

from __future__ import annotations

import pytest

from corepipe.errors import ModelError
from corepipe.network.load import load_network


def refused(source, match, **options):
    """Loading fails with one line of a reasonable length."""
    with pytest.raises(ModelError, match=match) as caught:
        load_network(source, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
