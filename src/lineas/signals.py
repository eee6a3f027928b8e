"""Signals that end a command: Ctrl-C, TERM and a closed terminal (HUP) are handled alike. Imports nothing heavy."""

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
RESEND_AFTER = 0.05
"""Seconds after which a signal is sent again, if Python dropped its exception (in a destructor, for example)."""
LONGEST_END = 10.0
"""Seconds that an interrupted process may take to end by itself."""
SHOWN = 3
"""Number of paths that the message names."""


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to end; code that handles Ctrl-C handles it too."""


class InterruptedLearning(UserWarning):
    """A warning that learning was interrupted before its end; the command line prints its own message instead."""


class Command:
    """The running command: the signal that ended it, the files it has written, and the message about them."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.sentence: str | None = None
        self.written: list[Path] = []
        self._has_spoken = False

    @property
    def exit_code(self) -> int:
        """The exit code after a signal: 130 for Ctrl-C, 143 for TERM, 129 for HUP."""
        return 128 + (self.number or signal.SIGINT)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Turn a signal into an exception within the block, also if a library suppresses that exception.

        So temporary folders are deleted, hooks are removed, and learned results are saved.
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
        """Handle a signal by raising `Stopped`."""
        self.number = self.number or number
        raise Stopped

    def leave(self, number: int, _: Any = None) -> None:
        """Handle a signal by ending the process at once, while there is nothing to clean up."""
        self.number = self.number or number
        if not self._has_spoken:
            with suppress(OSError):
                os.write(2, self._line().encode())  # the signal may have interrupted a write of sys.stderr
        with suppress(OSError, ValueError, RuntimeError):
            sys.stdout.flush()
        os._exit(self.exit_code)

    def report(self) -> None:
        """Print once on stderr what was saved; a closed terminal is no error."""
        if not self._has_spoken:
            self._has_spoken = True
            with suppress(OSError, ValueError):
                sys.stderr.write(self._line())
                sys.stderr.flush()

    def _line(self) -> str:
        after_echo = "\n" if os.isatty(2) else ""  # the terminal has written ^C
        return f"{after_echo}{self.sentence or self._about_files()}\n"

    def _about_files(self) -> str:
        paths = list(dict.fromkeys(str(path) for path in self.written if path.exists()))
        if not paths:
            return "interrupted; nothing was written."
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        return f"interrupted; written before that and whole: {', '.join(paths[:SHOWN])}{more}."


_running: Command | None = None


def if_interrupted(sentence: str) -> None:
    """Set the message that the running command prints if a signal ends it."""
    if _running is not None:
        _running.sentence = sentence


def record_written(path: Path) -> None:
    """Record that the running command has completely written a file or folder."""
    if _running is not None:
        _running.written.append(path)


@contextmanager
def running(alone: bool) -> Iterator[Command]:
    """Handle signals while a command runs: they end it with its message and its exit code.

    Args:
        alone: True if the process runs this command only. A signal outside `Command.interruptible`, for example while
            modules are imported, then ends the process at once.
    """
    global _running
    before, _running = _running, Command()
    command = _running
    try:
        if alone:
            _set_handler(command.leave, ENDING)
            yield command
        else:
            with handled(command.stop):
                yield command
    except KeyboardInterrupt:
        command.report()
        if alone:
            _end_soon(command.exit_code)
        raise SystemExit(command.exit_code) from None
    finally:
        _running = before


@contextmanager
def handled(by: Callable[[int, Any], Any], numbers: Collection[int] = ENDING) -> Iterator[None]:
    """Handle signals by a function of number and frame within the block; does nothing outside the main thread."""
    before = _set_handler(by, numbers)
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def restoring_handlers() -> Iterator[None]:
    """Restore the signal handlers at the end of the block, since a library may change them."""
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            _restore(before)


@contextmanager
def blocked(numbers: Collection[int]) -> Iterator[None]:
    """Delay signals until the end of the block; a process that is started within it never receives them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_handler(by: Callable[[int, Any], Any], numbers: Collection[int]) -> dict[int, Any]:
    """Set a signal handler, except for ignored signals (nohup), and return the previous handlers."""
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
    """Send a signal again if Python drops its exception, as it does in a destructor or a callback."""
    before, timers = sys.unraisablehook, []

    def hook(dropped: Any) -> None:
        received = number()
        if received is None or not issubclass(dropped.exc_type, Stopped):
            before(dropped)
            return
        timers.append(threading.Timer(RESEND_AFTER, _send, (received,)))
        timers[-1].start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


def _send(number: int) -> None:
    """Send a signal to the main thread, where it also interrupts a blocking call."""
    main_thread = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main_thread is not None:
        signal.pthread_kill(main_thread, number)
    else:
        signal.raise_signal(number)


def _end_soon(code: int) -> None:
    """Let the process end by itself, but kill it after a while if a library's thread (a download) keeps it alive."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError, AttributeError):  # a closed terminal would make the exit code 120
            setattr(sys, name, None)
    last = threading.Timer(LONGEST_END, os._exit, (code,))
    last.daemon = True
    last.start()
