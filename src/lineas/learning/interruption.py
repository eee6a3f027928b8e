"""Ctrl-C while learning: the maps learned so far are saved beside the usual place and marked as unfinished."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from lineas.signals import InterruptedLearning

_discards_partial = ContextVar("discards_partial", default=False)


@dataclass
class Ending:
    """The end of a learning run, by Ctrl-C or by itself."""

    interrupted: bool = False


@contextmanager
def stoppable(done: Callable[[], int], steps: int) -> Iterator[Ending]:
    """Turn Ctrl-C into the end of the block and a warning, if at least one step is done."""
    ending = Ending()
    try:
        yield ending
    except KeyboardInterrupt:
        if not done() or _discards_partial.get():
            raise
        ending.interrupted = True
        sentence = f"interrupted after {done()} of {steps} steps; what was learned so far is kept."
        warnings.warn(sentence, InterruptedLearning, stacklevel=4)


def place_of_unfinished(finished: Path, ending: str = "interrupted") -> Path:
    """Return a free place for unfinished work, beside the place of the finished one.

    Args:
        ending: word that is added to its name, followed by a number if that name is taken.

    >>> place_of_unfinished(Path("nowhere/good")).as_posix()
    'nowhere/good.interrupted'
    """
    finished = finished if finished.name not in ("", "..") else finished.resolve()
    names = (f"{finished.name}.{ending}{'' if number == 1 else f'-{number}'}" for number in count(1))
    return next(place for name in names if not os.path.lexists(place := finished.with_name(name)))


@contextmanager
def discard_partial() -> Iterator[None]:
    """Let Ctrl-C raise within the block, so that a half-learned point of a sweep or path is discarded."""
    before = _discards_partial.set(True)
    try:
        yield
    finally:
        _discards_partial.reset(before)
