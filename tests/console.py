"""Running the command line within a test."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from lineas.cli import main

SOURCE = "The dog ran away from the house\nA bird sang\nHe was sad and cried all day\n"
TARGET = "The sun was warm and bright\nShe smiled at her mom\nThey played happily all day\n"
LEARN = ("learn", "model", "--source", "source.txt", "--target", "target.txt", "--out", "calm", "--steps", "3")


def exit_code(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; warnings are printed, as in a process of its own, and fail no test."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for silent in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", silent)
        try:
            main(list(arguments))
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error of a command."""
    code = exit_code(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def check_refused(capsys: pytest.CaptureFixture[str], desk: Path, sentence: str, *arguments: str) -> None:
    """A mistake is one sentence and exit code 2, without a traceback, and nothing is written."""
    before = sorted(desk.rglob("*"))
    code, out, err = run(capsys, *arguments)
    assert code == 2
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert "Traceback" not in out + err
    assert sorted(desk.rglob("*")) == before
