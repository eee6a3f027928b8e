"""Ctrl-C while learning: what was learned so far is kept, marked as unfinished, beside what was there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from pathlib import Path

from lineas.signals import InterruptedLearning

_whole = ContextVar("whole", default=False)


class Steps:
    """The steps of a learning.

    Args:
        of: how many were asked for.
    """

    def __init__(self, of: int) -> None:
        self.of = of
        self.interrupted = False


@contextmanager
def stoppable(done: Callable[[], int], steps: int) -> Iterator[Steps]:
    """Let an interruption end the block with a warning, once a step is done; gives whether one came.

    Args:
        done: gives the number of steps that are done.
        steps: number of steps in all.
    """
    these = Steps(steps)
    try:
        yield these
    except KeyboardInterrupt:
        if not done() or _whole.get():
            raise
        these.interrupted = True
        said = f"interrupted after {done()} of {steps} steps; what was learned so far is kept."
        warnings.warn(said, InterruptedLearning, stacklevel=4)


def place_of_unfinished(finished: Path, ending: str = "interrupted") -> Path:
    """Return where the unfinished goes: beside the place of the finished, and never where something is.

    >>> place_of_unfinished(Path("nowhere/good")).as_posix()
    'nowhere/good.interrupted'
    """
    finished = finished if finished.name not in ("", "..") else finished.resolve()
    names = (f"{finished.name}.{ending}{'' if number == 1 else f'-{number}'}" for number in count(1))
    return next(place for name in names if not os.path.lexists(place := finished.with_name(name)))


@contextmanager
def discard_partial() -> Iterator[None]:
    """Within the block an interruption is one: what is learned is a point of something larger, and a half is none."""
    before = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(before)
