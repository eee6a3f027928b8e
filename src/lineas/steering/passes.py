"""Forward passes of a steered network, and their backward passes, in which blocks may run again as they ran then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from lineas.steering.live_maps import Setting

running_again: dict[int, dict[object, Pass]] = {}
"""By backward pass, what steered the forward pass whose blocks it runs again."""


class Pass:
    """One forward pass of a steered network.

    Args:
        setting: the strength that it keeps to.
        place: where it is in its texts.
        outer: the pass within which it runs.
        held: what else held when it began.
    """

    __slots__ = ("_saving", "held", "outer", "place", "runs_again", "setting")

    def __init__(
        self, setting: Setting, place: Any, outer: Pass | None = None, held: Mapping[object, Any] | None = None
    ) -> None:
        self.setting, self.place, self.outer, self.held = setting, place, outer, held or {}
        self.runs_again = False
        self._saving = _ways_of_saving()

    def noting_checkpoints(self) -> Pass:
        """The same, after noticing whether it is in a block that will run again in the backward pass."""
        if self._saving is not None and not self.runs_again:
            self.runs_again = _ways_of_saving() != self._saving
        return self


def _ways_of_saving() -> Any:
    """Return how autograd keeps tensors here, which checkpoints change; None where it keeps none."""
    of_torch: Any = torch._C
    return (of_torch._autograd._top_saved_tensors_default_hooks(True),) if torch.is_grad_enabled() else None


class Backward:
    """A hook on the outputs of a pass: blocks that run again in this backward pass run as they did in that pass.

    Args:
        key: of the steering.
        done: its pass.
        beside: keys of all that steered the same forward pass.
    """

    def __init__(self, key: object, done: Pass, beside: Sequence[object]) -> None:
        self._key, self._done, self._beside = key, done, {key, *beside}

    def __call__(self, gradient: torch.Tensor) -> None:
        backward = torch._C._current_graph_task_id()
        if backward not in running_again:
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(partial(running_again.pop, backward, None))
        before = running_again.get(backward, {})  # of a later forward pass, through which the gradient has gone already
        running_again[backward] = {key: now for key, now in before.items() if key in self._beside} | {
            self._key: self._done
        }


def tensors_in(result: Any) -> Iterator[torch.Tensor]:
    """All tensors in what a network returned."""
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (tuple, list, dict)):
        for part in result.values() if isinstance(result, dict) else result:
            yield from tensors_in(part)
