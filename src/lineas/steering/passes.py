"""Forward passes of a steered network, and backward passes, in which checkpointed blocks run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from lineas.steering.strength import Setting

running_again: dict[int, dict[object, Pass]] = {}
"""For each backward pass, by its id in autograd: the steered forward passes whose blocks it runs again, by key."""


class Pass:
    """A forward pass of a steered network, which keeps its strength to the end; `outer` is the pass around it."""

    __slots__ = ("_saved_tensor_hooks", "active", "outer", "place", "runs_again", "setting")

    def __init__(
        self, setting: Setting, place: Any, outer: Pass | None = None, active: Mapping[object, Any] | None = None
    ) -> None:
        self.setting, self.place, self.outer, self.active = setting, place, outer, active or {}
        self.runs_again = False
        self._saved_tensor_hooks = _saved_tensor_hooks()

    def noting_checkpoints(self) -> Pass:
        """Return this pass, after recording whether it is inside a checkpointed block."""
        if self._saved_tensor_hooks is not None and not self.runs_again:
            self.runs_again = _saved_tensor_hooks() != self._saved_tensor_hooks
        return self


def _saved_tensor_hooks() -> Any:
    """Return autograd's current hooks for saved tensors, which checkpoints replace; None without gradients."""
    of_torch: Any = torch._C
    return (of_torch._autograd._top_saved_tensors_default_hooks(True),) if torch.is_grad_enabled() else None


class Backward:
    """A gradient hook on a pass's outputs, so that checkpointed blocks are steered again as they were in that pass."""

    def __init__(self, key: object, done: Pass, others: Sequence[object]) -> None:
        self._key, self._done, self._keys = key, done, {key, *others}  # of all interventions in that pass

    def __call__(self, gradient: torch.Tensor) -> None:
        backward = torch._C._current_graph_task_id()
        if backward not in running_again:
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(partial(running_again.pop, backward, None))
        before = running_again.get(backward, {})  # the gradient may come from a later forward pass
        others = {key: done for key, done in before.items() if key in self._keys}
        running_again[backward] = {**others, self._key: self._done}


def tensors_in(result: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in a network's result."""
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (tuple, list, dict)):
        for part in result.values() if isinstance(result, dict) else result:
            yield from tensors_in(part)
