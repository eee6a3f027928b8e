"""Tasks of lm-eval on a steered model, to measure the damage.

    lineas lm-eval --model lineas --model_args pretrained=MODEL,intervention=DIR,strength=0.5 --tasks hellaswag

is the command `lm_eval` with the further model type `lineas`; it takes all options of `lm_eval`.
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

from lineas.errors import LineasError, needing
from lineas.evaluation.lm_model import LM_EVAL, model_class
from lineas.models.text import TextModel

BOOTSTRAP = 1000
"""Number of resamples for standard errors that have no formula."""


def run_tasks(
    model: TextModel,
    tasks: Sequence[str],
    path: str | Path | None = None,
    limit: int | None = None,
    prefix: str = "",
    fewshot: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Run tasks on a model as it is now, and return `metric`, its `value` and its standard `error` (or None) by task.

    Args:
        model: text model, steered or not.
        tasks: names of tasks of lm-eval, which downloads their data from the hub, or of tasks in `path`.
        path: folder with further task files (lm-eval's `--include_path`).
        limit: largest number of examples of each task; None for all.
        prefix: instruction before every context.
        fewshot: number of examples in the context; None for the task's own.
    """
    manager = check_tasks(tasks, path)
    from lm_eval import evaluator

    with _restored_generators():
        output: Any = evaluator.simple_evaluate(
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
    return {task: _result(task, output["results"][task]) for task in tasks}


def check_tasks(tasks: Sequence[str], path: str | Path | None = None) -> Any:
    """Return lm-eval's TaskManager; refuse names that it does not know, or of several tasks without a common result."""
    manager = _manager(None, ()) if path is None else _manager(str(path), _state(Path(path)))
    for task in tasks:
        if task in manager.all_tags:
            subtasks = ", ".join(name for name in manager.all_subtasks if name.startswith(f"{task}_"))
            raise LineasError(
                f"'{task}' stands for several tasks of lm-eval; name one of them: {subtasks or 'see lm_eval ls tasks'}."
            )
        if task not in manager.all_tasks:
            raise LineasError(
                f"lm-eval has no task '{task}'; `lineas lm-eval ls tasks` lists its tasks, and --task-path DIR "
                "(task_path=...) adds a folder of task files."
            )
    return manager


@lru_cache(maxsize=4)
def _manager(path: str | None, state: tuple[Any, ...]) -> Any:
    """Return lm-eval's TaskManager, which needs ten seconds to read all task files; `state` is a key of the cache."""
    with needing(*LM_EVAL):
        from lm_eval.tasks import TaskManager
    return TaskManager(include_path=path)


def _state(folder: Path) -> tuple[Any, ...]:
    """Return names, sizes and times of all files in a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return tuple((str(file), (facts := file.stat()).st_size, facts.st_mtime_ns) for file in files)


@contextmanager
def _restored_generators() -> Iterator[None]:
    """Restore all random generators after the block, since lm-eval seeds them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _result(task: str, results: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracy of a task, or else its first number."""
    metrics = [key for key in results if "," in key and "_stderr" not in key]
    numbers = {key: results[key] for key in metrics if isinstance(results[key], (int, float))}
    if not numbers:
        raise LineasError(f"lm-eval gave no number for the task {task}.")
    metric = next((key for key in numbers if key.startswith("acc,")), next(iter(numbers)))
    name, _, filter_name = metric.partition(",")
    error = results.get(f"{name}_stderr,{filter_name}")
    return {"metric": name, "value": numbers[metric], "error": error if isinstance(error, float) else None}
