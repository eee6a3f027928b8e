"""`lineas lm-eval`: the command line of lm-eval with the model type `lineas` in it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lineas.evaluation.harness import register


def lm_eval(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="...", help="As lm_eval takes them.")] = None,
) -> None:
    """Run lm_eval with the model type lineas.

    lineas lm-eval --model lineas --model_args pretrained=MODEL,intervention=DIR,strength=0.5 --tasks hellaswag
    """
    register()
    from lm_eval.__main__ import cli_evaluate

    before, sys.argv = sys.argv, ["lm_eval", *(arguments or [])]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
