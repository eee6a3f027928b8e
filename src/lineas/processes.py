"""Worker processes that end when the main process ends, for whatever reason, and hold its lock until then."""

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

TERMINAL_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name))
"""Signals that a terminal sends to every process of a command; the main process answers them."""


@contextmanager
def processes(at_once: int, lock: int | None = None) -> Iterator[Callable[..., Future[Any]]]:
    """Start worker processes for the block, and return a function `call(function, *arguments)` that uses them.

    The workers are spawned, not forked: a forked process would lack the threads of a network that has run. When the
    block fails or is interrupted, the workers get SIGTERM, and SIGKILL after `PATIENCE` seconds. They also end when
    this process is killed.

    Args:
        lock: file descriptor of a locked file, of which every worker holds a copy; None for no lock.
    """
    if os.name != "nt":
        with blocked(TERMINAL_SIGNALS):  # Python's helper process must survive a closed terminal
            resource_tracker.ensure_running()
    with ProcessPoolExecutor(at_once, get_context("spawn"), _start_worker, (_OpenFile(lock),)) as pool:

        def call(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
            with blocked(TERMINAL_SIGNALS):  # a new worker inherits this, and cannot ignore them before it has imported
                return pool.submit(_run, function, *arguments)

        try:
            yield call
        except BaseException:
            workers = list((pool._processes or {}).values())  # shutdown forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            _end(workers)
            raise


def _end(workers: list[Any]) -> None:
    for worker in workers:
        worker.terminate()
    alive = {worker.sentinel: worker for worker in workers}
    until = time.monotonic() + PATIENCE
    while alive and time.monotonic() < until:
        for sentinel in connection.wait(list(alive), until - time.monotonic()):
            del alive[sentinel]
    for worker in alive.values():
        worker.kill()


class _OpenFile:
    """A file descriptor, or None; a process that is started with it gets a copy of the file."""

    def __init__(self, file: int | None) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (_OpenFile, (None,)) if self.file is None else (_copied, (reduction.DupFd(self.file),))


def _copied(copy: Any) -> _OpenFile:
    return _OpenFile(copy.detach())


def _start_worker(_: _OpenFile) -> None:
    """Ignore the terminal's signals in a new worker, and let it end with the main process."""
    for number in TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(main_process: Any) -> None:
    """Wait until the main process has ended, and then end this one."""
    main_process.join()
    if os.name != "nt":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
    os._exit(128 + signal.SIGTERM)


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; SIGTERM raises in it, so that temporary folders are removed before the process ends."""
    try:
        with handled(_stop, (signal.SIGTERM,)):
            return function(*arguments)
    except Stopped:
        os._exit(128 + signal.SIGTERM)


def _stop(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)  # the executor sends it again, which would interrupt the clean-up
    raise Stopped
