"""Commands killed at random moments leave what was there, what they make, or what the next run goes on with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

COUNT = int(os.environ.get("LINEAS_KILLS", "20"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="commands are begun as copies of this process, which needs fork")
def test_random_kills_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kills import killed

    monkeypatch.chdir(tmp_path)
    states = killed(COUNT, seed=COUNT, scratch=tmp_path)
    assert sum(states.values()) == COUNT
