"""Every registered method, one test each."""

from __future__ import annotations

import pytest

from strategies.registry import STRATEGIES


@pytest.fixture(params=sorted(STRATEGIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)
