"""The version and the completion of commands, without what a command itself needs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

import lineas


def asked(*arguments: str, **environment: str) -> str:
    """Return what a command prints in a process of its own, where nothing of torch may be imported."""
    program = (
        "import sys; from lineas.cli import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return done.stdout.strip()


def test_the_version_is_that_of_the_package() -> None:
    assert asked("--version") == lineas.__version__ == version("lineas")


@pytest.mark.parametrize(("typed", "expected"), [("ca", "calibrate"), ("le", "learn")])
def test_a_shell_completes_verbs(typed: str, expected: str) -> None:
    words = {"COMP_WORDS": f"lineas {typed}", "COMP_CWORD": "1", "_LINEAS_COMPLETE": "complete_bash"}
    assert asked(**words) == expected


def test_a_shell_completes_the_options_of_a_verb() -> None:
    program = "from lineas.cli import main; main()"
    words = {"COMP_WORDS": "lineas learn --gam", "COMP_CWORD": "2", "_LINEAS_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ, **words}
    )
    assert done.stdout.split() == ["--gamma"]
