"""Work in several processes, which end with the first one however that ends, and hold its lock until they have."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context, reduction, resource_tracker
from typing import Any

from lineas.signals import PATIENCE, Stopped, blocked, handled

FOR_THE_FIRST = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name))
"""Signals that a terminal sends to every process of a command; the first one answers them."""


@contextmanager
def processes(at_once: int, lock: int | None = None) -> Iterator[Callable[..., Future[Any]]]:
    """New processes, not copies of this one; gives what calls a function with arguments in one of them.

    A network that has run has threads, which no copy inherits. When the block fails or is interrupted, the processes
    are told to end, and killed where they do not in time. They end as well when this process is killed.

    Args:
        at_once: number of processes.
        lock: an open file with a lock, of which every process holds a copy; None for none.
    """
    if os.name != "nt":
        with blocked(FOR_THE_FIRST):  # Python's own helper would not live through a closed terminal, and be missed
            resource_tracker.ensure_running()
    with ProcessPoolExecutor(at_once, get_context("spawn"), _begin, (_Open(lock),)) as pool:

        def call(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
            with blocked(FOR_THE_FIRST):  # also while it imports, before it could ignore them itself
                return pool.submit(_work, function, *arguments)

        try:
            yield call
        except BaseException:
            begun = list((pool._processes or {}).values())  # shutdown forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            _end(begun)
            raise


def _end(begun: list[Any]) -> None:
    for process in begun:
        process.terminate()
    left = {process.sentinel: process for process in begun}
    until = time.monotonic() + PATIENCE
    while left and time.monotonic() < until:
        for over in connection.wait(list(left), until - time.monotonic()):
            del left[over]
    for process in left.values():
        process.kill()


class _Open:
    """An open file, or None, of which a new process gets a copy when it is begun with this."""

    def __init__(self, file: int | None) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Open, (None,)) if self.file is None else (_copied, (reduction.DupFd(self.file),))


def _copied(copy: Any) -> _Open:
    return _Open(copy.detach())


def _begin(_: _Open) -> None:
    """Begin a process: leave the terminal's signals to the first one, and end with it."""
    for number in FOR_THE_FIRST:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(first: Any) -> None:
    """Wait for the end of the first process, which closes a pipe, and then end this one."""
    first.join()
    if os.name != "nt":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
    os._exit(128 + signal.SIGTERM)


def _work(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; TERM is an exception meanwhile, which clears temporary folders, and then the end."""
    try:
        with handled(_stop, (signal.SIGTERM,)):
            return function(*arguments)
    except Stopped:
        os._exit(128 + signal.SIGTERM)


def _stop(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # the executor sends it once more, which would cut the clearing up short
    raise Stopped
