from __future__ import annotations

import pytest

from fleetfit.agent import work

from .desk import PaperChild
from .shelf import Shelf


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> PaperChild:
    """Measuring children made of paper, where it is not about what they measure."""
    child = PaperChild()
    monkeypatch.setattr(work, "run_child", child)
    return child
