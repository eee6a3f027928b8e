"""`lineas lm-eval`: the command line of lm-eval with the model type `lineas` in it."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from lineas.errors import LineasError, first_line
from lineas.evaluation.lm_model import register


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
    except LineasError:
        raise
    except Exception as error:  # lm-eval, datasets and what lies under them have their own
        if os.environ.get("LINEAS_DEBUG"):
            raise
        raise LineasError(_in_words(error)) from error
    finally:
        sys.argv = before


def _in_words(error: Exception) -> str:
    """One sentence for what ended lm-eval."""
    first = first_line(error)
    if first.startswith("Tasks not found"):
        return (
            f"lm-eval has no task{first.removeprefix('Tasks not found')}; `lineas lm-eval ls tasks` lists its own, and "
            "a folder with task files is given as --include_path."
        )
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"lm-eval ended: {kind}{first} (LINEAS_DEBUG=1 shows where)."
