"""lm-eval: a steered model as one of its models, so that any of its tasks measures the damage.

    lineas lm-eval --model lineas --model_args pretrained=MODEL,intervention=DIR,strength=0.5 --tasks hellaswag

is `lm_eval` with the model type `lineas` known to it; it takes all of that command's options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lineas.errors import LineasError
from lineas.intervention import Intervention
from lineas.models import load
from lineas.models.text import TextModel
from lineas.steering import Tokens, steer

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
    evaluator, manager_of = _lm_eval()
    manager = manager_of(include_path=path)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise LineasError(
            f"lm-eval has no task '{unknown[0]}'; `lm_eval ls tasks` lists its own, and a folder with task files is "
            "given as --task-path."
        )
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


def model_class() -> type:
    """lm-eval's model type `lineas`: a model of transformers with an intervention.

    Its arguments (`--model_args`): `pretrained` (hub id or folder; where left out, the intervention's own model or the
    default one), `intervention` (folder, shipped name or hub id), `strength` (1), `tokens` ("all", "prompt",
    "generated"), `dtype` ("auto"), and those of lm-eval's own `hf` that do not concern the weights.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise LineasError(NOT_INSTALLED) from None

    base: Any = HFLM

    class LineasLM(base):
        """A TextModel, or one to be loaded, as lm-eval sees it."""

        def __init__(
            self,
            pretrained: str | TextModel | None = None,
            intervention: str | None = None,
            strength: float = 1.0,
            tokens: Tokens = "all",
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
                loaded = load(pretrained, dtype=dtype, device=device, revision=revision)
            options |= {"tokenizer": loaded.tokenizer, "backend": "causal", "batch_size": batch_size}
            super().__init__(pretrained=loaded.network, **options)
            self.live = None if learned is None else steer(loaded, learned, float(strength), tokens)

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
