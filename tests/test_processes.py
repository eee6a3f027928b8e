"""Processes that work for a first one: they end with it however it ends, clear up, and hold its lock until then."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lineas.files.writing import TEMPORARY

WORK = """
import threading
from pathlib import Path
from lineas.files.writing import new_folder
from lineas.files.ownership import FolderKind

def work(name):
    with new_folder(Path(name), FolderKind("work", "work", "whole")):
        with open("heard", "w") as heard:
            heard.write("x")
        threading.Event().wait()

def fails(name):
    raise ValueError(name)
"""
FIRST = """
import os
from pathlib import Path
import work_of_test
from lineas import signals
from lineas.files.writing import locked
from lineas.processes import processes

with signals.running(alone=True) as command, command.interruptible(), locked(Path(".")) as lock:
    with processes(2, lock) as call:
        running = [call(work_of_test.work, name) for name in ("a", "b")]
        os.close(lock)  # the workers have copies
        running[0].result()
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of work and a pipe by which workers are heard."""
    (tmp_path / "work_of_test.py").write_text(WORK)
    os.mkfifo(tmp_path / "heard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def in_time() -> Iterator[None]:
    """A test that would wait for ever fails."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_workers_end_with_the_first_process_and_hold_its_lock_until_then(
    room: Path, in_time: None, number: signal.Signals
) -> None:
    heard, place = os.open(room / "heard", os.O_RDWR), os.open(room, os.O_RDONLY)
    to_all = number in (signal.SIGINT, signal.SIGHUP)  # as a terminal does

    def listens() -> None:
        for one in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(one, signal.SIG_DFL)

    pipes = {"stderr": subprocess.PIPE, "start_new_session": True, "preexec_fn": listens}
    with subprocess.Popen([sys.executable, "-c", FIRST], **pipes) as process:
        begun = b""
        while len(begun) < 2:
            begun += os.read(heard, 2)
        assert sum(path.name.startswith(TEMPORARY) for path in room.iterdir()) == 2
        with pytest.raises(BlockingIOError):
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (os.killpg if to_all else os.kill)(process.pid, number)
        err = process.stderr.read().decode()  # until the last process that has it is gone  # pyright: ignore[reportOptionalMemberAccess]
    fcntl.flock(place, fcntl.LOCK_EX)  # as soon as nobody holds it
    os.close(place)
    os.close(heard)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert err == "interrupted; nothing was written.\n"
    assert {path.name for path in room.iterdir()} - {"__pycache__"} == {"work_of_test.py", "heard"}


def test_an_error_of_the_work_comes_back(room: Path) -> None:
    import work_of_test  # pyright: ignore[reportMissingImports]

    from lineas.processes import processes

    with processes(1) as call, pytest.raises(ValueError, match="why"):
        call(work_of_test.fails, "why").result()
