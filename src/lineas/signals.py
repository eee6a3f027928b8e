"""Signals that end a command: Ctrl-C, TERM and a closed terminal (HUP), answered alike; imports nothing heavy."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that end a command; Windows has no HUP."""
PATIENCE = 2.0
"""Seconds that processes have to end before they are killed."""
AGAIN = 0.05
"""Seconds after which a signal is sent once more whose exception was dropped, as Python does in a destructor."""
LONGEST_END = 10.0
"""Seconds that an interrupted process may take to end by itself."""
SHOWN = 3
"""Paths that the sentence names."""


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to end; whoever handles Ctrl-C handles it too."""


class InterruptedLearning(UserWarning):
    """Learning was interrupted and its result is not whole; the command line says so in a sentence of its own."""


class Command:
    """The command that runs: the signal that ended it, the files it has written, the sentence about them."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.sentence: str | None = None
        self.written: list[Path] = []
        self._told = False

    @property
    def exit_code(self) -> int:
        """The exit code of what a signal ended: 130 after Ctrl-C, 143 after TERM, 129 after HUP."""
        return 128 + (self.number or signal.SIGINT)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Make a signal an exception within the block; whatever a library makes of that, the block ends by one.

        So temporary folders are cleared, hooks removed, and what was learned is kept.
        """
        with handled(self.stop), _sent_again(lambda: self.number):
            try:
                yield
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if self.number is None:
                    raise
                raise KeyboardInterrupt from error
            if self.number is not None:
                raise KeyboardInterrupt

    def stop(self, number: int, _: Any = None) -> None:
        """Answer a signal by an exception."""
        self.number = self.number or number
        raise Stopped

    def leave(self, number: int, _: Any = None) -> None:
        """Answer a signal by the end of the process, on the spot, where there is nothing to clear up."""
        self.number = self.number or number
        if not self._told:
            with suppress(OSError):
                os.write(2, self._line().encode())  # sys.stderr may be in the midst of a write
        with suppress(OSError, ValueError, RuntimeError):
            sys.stdout.flush()
        os._exit(self.exit_code)

    def tell(self) -> None:
        """Say once on stderr what was kept; a terminal that is gone hears nothing."""
        if not self._told:
            self._told = True
            with suppress(OSError, ValueError):
                sys.stderr.write(self._line())
                sys.stderr.flush()

    def _line(self) -> str:
        after_echo = "\n" if os.isatty(2) else ""  # the terminal has written ^C
        return f"{after_echo}{self.sentence or self._about_files()}\n"

    def _about_files(self) -> str:
        there = list(dict.fromkeys(str(path) for path in self.written if path.exists()))
        if not there:
            return "interrupted; nothing was written."
        more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
        return f"interrupted; written before that and whole: {', '.join(there[:SHOWN])}{more}."


_running: Command | None = None


def keeps(sentence: str) -> None:
    """Say, from now on, this about what the running command keeps when it is interrupted."""
    if _running is not None:
        _running.sentence = sentence


def wrote(path: Path) -> None:
    """Note that a file or folder of the running command is whole and in its place."""
    if _running is not None:
        _running.written.append(path)


@contextmanager
def running(alone: bool) -> Iterator[Command]:
    """Answer signals while a command runs: by its sentence and its exit code.

    Args:
        alone: whether the process is there for the command only. Then signals before `Command.interruptible`, while
            modules are imported, and after it end the process on the spot, and they do so until its end.
    """
    global _running
    before, _running = _running, Command()
    command = _running
    try:
        if alone:
            _answer(command.leave, ENDING)
            yield command
        else:
            with handled(command.stop):
                yield command
    except KeyboardInterrupt:
        command.tell()
        if alone:
            _end_soon(command.exit_code)
        raise SystemExit(command.exit_code) from None
    finally:
        _running = before


@contextmanager
def handled(by: Callable[[int, Any], Any], numbers: Collection[int] = ENDING) -> Iterator[None]:
    """Answer signals by a function within the block; does nothing outside the main thread, which alone may do so."""
    before = _answer(by, numbers)
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def restoring_handlers() -> Iterator[None]:
    """Answer signals after the block as before it, whatever a library has set in it."""
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            _restore(before)


@contextmanager
def blocked(numbers: Collection[int]) -> Iterator[None]:
    """Let signals wait until the end of the block; a process that is begun within it never sees them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _answer(by: Callable[[int, Any], Any], numbers: Collection[int]) -> dict[int, Any]:
    """Answer signals by a function, save those that the process is to ignore, as by nohup; gives earlier handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, by)
    return before


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _sent_again(number: Callable[[], int | None]) -> Iterator[None]:
    """Send a signal again, a moment later, whose exception Python drops, as in a destructor or a callback."""
    before, timers = sys.unraisablehook, []

    def hook(dropped: Any) -> None:
        came = number()
        if came is None or not issubclass(dropped.exc_type, Stopped):
            before(dropped)
            return
        timers.append(threading.Timer(AGAIN, _send, (came,)))
        timers[-1].start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


def _send(number: int) -> None:
    """Send a signal to the main thread, which also ends what it waits for."""
    main_thread = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main_thread is not None:
        signal.pthread_kill(main_thread, number)
    else:
        signal.raise_signal(number)


def _end_soon(code: int) -> None:
    """Let the process end by itself, and end it where a library's thread, as of a download, would keep it."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError, AttributeError):  # the terminal is gone: else the exit code would become 120
            setattr(sys, name, None)
    last = threading.Timer(LONGEST_END, os._exit, (code,))
    last.daemon = True
    last.start()
