"""Files and folders that are there whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lineas import signals
from lineas.errors import LineasError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


def check_free(path: Path, overwrite: bool, marked_by: str | tuple[str, ...], kind: str) -> None:
    """Refuse to write over something that exists, or over what is no folder of its kind even when asked to.

    Args:
        path: the folder to be made.
        overwrite: whether one of this kind may be replaced.
        marked_by: the file that every folder of this kind has, or several, of which each has one.
        kind: what it is called, such as "an intervention".
    """
    if not path.exists():
        return
    if not overwrite:
        raise LineasError(f"{path} exists already; choose another folder or pass --force (overwrite=True).")
    marks = (marked_by,) if isinstance(marked_by, str) else marked_by
    if not path.is_dir() or (any(path.iterdir()) and not any((path / mark).exists() for mark in marks)):
        raise LineasError(f"{path} exists and is not {kind}, so it is not overwritten; choose another folder.")


def write_text(path: Path, text: str) -> None:
    """Write a file, and the folders it lies in where they are missing.

    Raises:
        OSError: when it cannot be written; what was there before is still there.
    """
    with new_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes its place at the end of the block, or is gone when the block fails."""
    named, path = path, path.resolve()  # a link goes on to lead to it
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent, delete=False) as file:
        beside = Path(file.name)
    try:
        yield beside
        beside.chmod(0o644)
        beside.replace(path)
        signals.wrote(named)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path, keep: bool = False, others: bool = False) -> Iterator[Path]:
    """A folder to write into, which takes its place at the end of the block, or is gone when the block fails.

    Args:
        path: its place; what is there is replaced.
        keep: unless this is True: then what has come there meanwhile stays.
        others: what lies there under other names than those that are written stays, beside them.
    """
    named, path = path, path.resolve()  # a link goes on to lead to it
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield beside
        beside.chmod(0o755)
        if keep:
            try:
                beside.rename(path)
            except OSError:  # another process was first
                if not path.exists():
                    raise
                shutil.rmtree(beside)
        elif path.exists():
            old = beside.with_name(beside.name + ".old")
            path.replace(old)
            beside.replace(path)
            for other in list(old.iterdir()) if others else ():
                if not (path / other.name).exists():
                    other.replace(path / other.name)
            shutil.rmtree(old)
        else:
            beside.replace(path)
        if not keep:
            signals.wrote(named)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


@contextmanager
def alone(folder: Path) -> Iterator[int | None]:
    """Hold a folder until the end of the block or of the process, where the system has locks; nothing is written.

    Gives the open file that holds it: a process that has a copy of it holds the folder too. None without locks.

    Raises:
        LineasError: when another run holds it.
    """
    if fcntl is None:
        yield None
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LineasError(
                f"another run works in {folder}; wait until it has ended, or choose another folder."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield place
    finally:
        os.close(place)
