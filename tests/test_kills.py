"""Commands killed at random moments leave what was there, what they make, or what the next run goes on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = int(os.environ.get("LINEAS_KILLS", "20"))
SCRIPT = Path(__file__).with_name("kills.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="commands are begun as copies of a process, which needs fork")
def test_random_kills_lose_nothing() -> None:
    command = [sys.executable, SCRIPT, "--count", str(COUNT), "--seed", str(COUNT)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    states = json.loads(ended.stdout.splitlines()[-1])
    assert sum(states.values()) == COUNT
