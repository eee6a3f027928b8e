"""Interrupting a piece of work at every one of its file operations, each time in a process of its own."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator

WRITES = {
    "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate",
}  # fmt: skip
"""Audit events of operations that change a file system; opening for writing is told apart by its mode."""
KILLED, FAILED = 137, 99


def in_a_copy(work: Callable[[], object], at: int | None = None, kill: bool = False) -> tuple[int, int]:
    """Run a function in a copy of this process; return its exit code and how many file operations it began.

    Args:
        work: what to do.
        at: number of the operation, from 0, before which it is interrupted; None for not at all.
        kill: end the process on the spot, as SIGKILL does, instead of by KeyboardInterrupt.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code, count = FAILED, 0

        def before(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event not in WRITES and not writes:
                return
            count += 1
            if at is not None and count == at + 1:
                if kill:
                    os._exit(KILLED)
                raise KeyboardInterrupt

        try:
            sys.addaudithook(before)
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        os.write(write_end, str(count).encode())
        os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end) as told:
        count = int(told.read() or 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), count


def every_interruption(work: Callable[[], object], prepare: Callable[[], object]) -> Iterator[str]:
    """Interrupt a function at each of its file operations, by KILL and by Ctrl-C, and yield what was done.

    Args:
        work: what to do; it is interrupted in copies of this process.
        prepare: puts everything back before each time.
    """
    prepare()
    code, operations = in_a_copy(work)
    assert (code, operations > 0) == (0, True)
    for at in range(operations):
        for kill in (True, False):
            prepare()
            code, _ = in_a_copy(work, at, kill)
            assert code in ((KILLED,) if kill else (130, 0)), code  # 0: it was cleaning up already
            yield f"{'KILL' if kill else 'Ctrl-C'} before operation {at} of {operations}"
