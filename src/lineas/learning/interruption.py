"""Ctrl-C while learning: what was learned so far is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_whole = ContextVar("whole", default=False)


@contextmanager
def stoppable(done: Callable[[], int], steps: int) -> Iterator[None]:
    """Within the block an interruption by the keyboard ends the block with a warning, once a step is done.

    Args:
        done: how many steps are.
        steps: in all.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not done() or _whole.get():
            raise
        warnings.warn(f"interrupted after {done()} of {steps} steps; what was learned so far is kept.", stacklevel=4)


@contextmanager
def whole_or_nothing() -> Iterator[None]:
    """Within the block an interruption is one: what is learned is a point of something larger, and a half is none."""
    before = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(before)
