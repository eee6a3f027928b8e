"""Running the command line within a test."""

from __future__ import annotations

import pytest

from lineas.cli import main

SOURCE = "The dog ran away from the house\nA bird sang\nHe was sad and cried all day\n"
TARGET = "The sun was warm and bright\nShe smiled at her mom\nThey played happily all day\n"
LEARN = ("learn", "model", "--source", "source.txt", "--target", "target.txt", "--out", "calm", "--steps", "3")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = 0
    try:
        main(list(arguments))
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
