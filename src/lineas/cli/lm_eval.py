"""`lineas lm-eval`: the command line of lm-eval, which then knows the model type `lineas`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from lineas.errors import LineasError, first_line
from lineas.evaluation.lm_model import register


def lm_eval(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="...", help="Arguments of lm_eval.")] = None,
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
    except Exception as error:  # lm-eval and its libraries raise many types
        if os.environ.get("LINEAS_DEBUG"):
            raise
        raise LineasError(_sentence(error)) from error
    finally:
        sys.argv = before


def _sentence(error: Exception) -> str:
    """Return one sentence about an error of lm-eval."""
    first = first_line(error)
    if first.startswith("Tasks not found"):
        return (
            f"lm-eval has no task{first.removeprefix('Tasks not found')}; `lineas lm-eval ls tasks` lists its tasks, "
            "and --include_path DIR adds a folder of task files."
        )
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"lm-eval ended: {kind}{first} (LINEAS_DEBUG=1 shows where)."
