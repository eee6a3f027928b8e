"""lm-eval: a steered model as one of its models, so that any of its tasks measures the damage.

    lineas lm-eval --model lineas --model_args pretrained=MODEL,intervention=DIR,strength=0.5 --tasks hellaswag

is `lm_eval` with the model type `lineas` known to it; it takes all of that command's options.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lineas.errors import LineasError
from lineas.evaluation.lm_model import NOT_INSTALLED, model_class
from lineas.models.text import TextModel

BOOTSTRAP = 1000
"""Resamples for the standard errors that have no formula."""


def run_tasks(
    model: TextModel,
    tasks: Sequence[str],
    path: str | Path | None = None,
    limit: int | None = None,
    prefix: str = "",
    fewshot: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Run tasks of lm-eval on a model as it is, steered or not.

    Args:
        model: a text model.
        tasks: by name; those of lm-eval, which fetches their data from the hub, or of `path`.
        path: a folder with further task files (lm-eval's `--include_path`).
        limit: at most so many examples a task.
        prefix: an instruction in front of every context.
        fewshot: examples in the context; None for what the task says.

    Returns:
        by task: `metric`, its `value`, and its standard `error` or None.

    Raises:
        LineasError: when lm-eval is not installed, or does not know a task.
    """
    evaluator, _ = _lm_eval()
    manager = check_tasks(tasks, path)
    with _own_randomness():
        found = evaluator.simple_evaluate(
            model=model_class()(pretrained=model),
            tasks=list(tasks),
            num_fewshot=fewshot,
            limit=limit,
            system_instruction=prefix.strip() or None,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=BOOTSTRAP,
            verbosity="ERROR",
        )
    return {task: _result(task, found["results"][task]) for task in tasks}


def check_tasks(tasks: Sequence[str], path: str | Path | None = None) -> Any:
    """Refuse names that lm-eval does not know, or that stand for several tasks without a number of their own.

    Returns:
        lm-eval's TaskManager, with the folder's task files.
    """
    manager = _manager(None, ()) if path is None else _manager(str(path), _state(Path(path)))
    for task in tasks:
        if task in manager.all_tags:
            like = (
                ", ".join(name for name in manager.all_subtasks if name.startswith(f"{task}_"))
                or "see lm_eval ls tasks"
            )
            raise LineasError(f"'{task}' stands for several tasks of lm-eval; name one of them: {like}.")
        if task not in manager.all_tasks:
            raise LineasError(
                f"lm-eval has no task '{task}'; `lm_eval ls tasks` lists its own, and a folder with task files is "
                "given as --task-path."
            )
    return manager


@lru_cache(maxsize=4)
def _manager(path: str | None, state: tuple[Any, ...]) -> Any:
    """Return lm-eval's TaskManager, which takes ten seconds to read all task files; once a folder and its state."""
    _, manager_of = _lm_eval()
    return manager_of(include_path=path)


def _state(folder: Path) -> tuple[Any, ...]:
    """Return what changes with the files in a folder: their names, sizes and times."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return tuple((str(file), (facts := file.stat()).st_size, facts.st_mtime_ns) for file in files)


def _lm_eval() -> tuple[Any, Any]:
    try:
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise LineasError(NOT_INSTALLED) from None
    return evaluator, TaskManager


@contextmanager
def _own_randomness() -> Iterator[None]:
    """lm-eval seeds every generator; afterwards they are where they were."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def _result(task: str, found: dict[str, Any]) -> dict[str, Any]:
    """The task's accuracy, or else its first number."""
    numbers = {
        key: value
        for key, value in found.items()
        if isinstance(value, (int, float)) and "," in key and "_stderr" not in key
    }
    if not numbers:
        raise LineasError(f"lm-eval gave no number for the task {task}.")
    metric = next((key for key in numbers if key.startswith("acc,")), next(iter(numbers)))
    name, _, how = metric.partition(",")
    error = found.get(f"{name}_stderr,{how}")
    return {"metric": name, "value": numbers[metric], "error": error if isinstance(error, float) else None}
