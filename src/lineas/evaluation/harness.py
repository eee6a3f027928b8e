"""lm-eval: a steered model as one of its models, so that any of its tasks measures the damage.

    lineas lm-eval --model lineas --model_args pretrained=MODEL,intervention=DIR,strength=0.5 --tasks hellaswag

is `lm_eval` with the model type `lineas` known to it; it takes all of that command's options.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lineas.errors import LineasError
from lineas.evaluation.continuing import continuing
from lineas.intervention import Intervention
from lineas.models import load_text
from lineas.models.likelihoods import likelihoods
from lineas.models.text import TextModel
from lineas.steering import steer

BATCH = 16
BOOTSTRAP = 1000
"""Resamples for the standard errors that have no formula."""
MODEL_TYPE = "lineas"


def run_tasks(
    model: TextModel,
    tasks: Sequence[str],
    path: str | None = None,
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


def check_tasks(tasks: Sequence[str], path: str | None = None) -> Any:
    """Refuse names that lm-eval does not know, or that stand for several tasks without a number of their own.

    Returns:
        lm-eval's TaskManager, with the folder's task files.
    """
    _, manager_of = _lm_eval()
    manager = manager_of(include_path=path)
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


def model_class() -> type:
    """lm-eval's model type `lineas`: a model of transformers with an intervention.

    Its arguments (`--model_args`): `pretrained` (hub id or folder; where left out, the intervention's own model or the
    default one), `intervention` (folder, shipped name or hub id), `strength` (1), `dtype`
    ("auto"), and those of lm-eval's own `hf` that do not concern the weights.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise LineasError(NOT_INSTALLED) from None

    base: Any = continuing(HFLM)

    class LineasLM(base):
        """A TextModel, or one to be loaded, as lm-eval sees it."""

        def __init__(
            self,
            pretrained: str | TextModel | None = None,
            intervention: str | None = None,
            strength: float = 1.0,
            dtype: str = "auto",
            revision: str | None = None,
            device: str | None = None,
            batch_size: int | str | None = BATCH,
            **options: Any,
        ) -> None:
            learned = None if intervention is None else Intervention.load(intervention)
            if pretrained is None and learned is not None and learned.base is not None:
                pretrained = learned.base.name
            if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
                device = None  # lm_eval's own default
            if isinstance(pretrained, TextModel):
                loaded = pretrained
            else:
                loaded = load_text(pretrained, dtype=dtype, device=device, revision=revision)
            tokenizer = copy.deepcopy(loaded.tokenizer)  # lm-eval gives it a padding token
            options |= {"tokenizer": tokenizer, "backend": "causal", "batch_size": batch_size}
            super().__init__(pretrained=loaded.network, **options)
            self.read = loaded
            self.live = None if learned is None else steer(loaded, learned, float(strength))

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            """What lm-eval asks of every (texts, context ids, continuation ids); examples that many share run once."""
            rows = override_bs or (self.batch_size if isinstance(self.batch_size, int) else BATCH)
            asked = [(context, continuation) for _, context, continuation in requests]
            with tqdm(total=len(asked), disable=disable_tqdm or self.rank != 0, desc="log-likelihoods") as bar:
                found = likelihoods(self.read, asked, self.max_length, rows, bar.update)
            for (texts, _, _), answer in zip(requests, found):
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
            return found

    return LineasLM


def register() -> None:
    """Make the model type known to lm-eval in this process."""
    _lm_eval()
    from lm_eval.api.registry import model_registry

    if MODEL_TYPE not in model_registry:
        model_registry.register(MODEL_TYPE, target=model_class())


NOT_INSTALLED = "tasks need lm-eval: pip install 'lineas[evaluate]'."


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
