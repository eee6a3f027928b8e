"""Files and folders that are there whole or not at all: written beside their place, then put there in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lineas import signals
from lineas.errors import LineasError
from lineas.files.ownership import MARK, FolderKind, check_folder, files_in, mark_text, own_files, read_mark, write_mark
from lineas.files.steady_reads import steadily

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

TEMPORARY = ".lineas-"
"""The beginning of the names of files and folders that are written beside their place, and locked meanwhile."""
LEFTOVER = re.compile(rf"{re.escape(TEMPORARY)}[a-z0-9_]{{8}}")
"""The whole of such a name, as Python's tempfile makes it."""


# ---- before the work


def check_place(path: Path) -> None:
    """Refuse a place where nothing can be written, found out by trying; nothing stays of the attempt.

    Args:
        path: the file or folder to be written later; the folders above it may be missing.
    """
    name = str(path)
    if name in ("", "."):
        raise LineasError("an empty name, or this folder itself, is no place to write to; name a file or folder.")
    try:
        path = path.resolve()
        above = next(p for p in path.parents if p.exists() or p.is_symlink())
        if not above.is_dir():
            raise LineasError(f"{name} lies under {above}, which is no folder; choose another place.")
        if path.exists() and not path.is_file() and not path.is_dir():
            if not os.access(path, os.W_OK):
                raise LineasError(f"no permission to write to {name}; choose another place.")
            return
        _clear_leftovers(above)
        with _temporary(above, is_folder=True) as trial:
            trial.joinpath(*path.relative_to(above).parts).mkdir(parents=True)
    except LineasError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LineasError(f"nothing can be written to {name} ({reason.lower()}); choose another place.") from None


# ---- single files


def write_text(path: Path, text: str) -> None:
    """Write a file, and the folders it lies in where they are missing."""
    with new_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes its place at the end of the block, or is gone when the block fails.

    What is no regular file, such as a device or a pipe, stays and is written to.
    """
    named, path = path, path.resolve()  # a link goes on to lead to it
    if path.exists() and not path.is_file():
        with tempfile.TemporaryDirectory(prefix=TEMPORARY) as elsewhere:
            yield Path(elsewhere) / path.name
            with (Path(elsewhere) / path.name).open("rb") as written, path.open("wb", buffering=0) as place:
                shutil.copyfileobj(written, place)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path.parent)
    try:
        with _temporary(path.parent, is_folder=False) as beside:
            yield beside
            beside.chmod(0o666 & ~_umask())
            beside.replace(path)
            signals.record_written(named)
    except OSError as error:
        raise _of_place(error, named) from None


# ---- folders


@contextmanager
def new_folder(path: Path, kind: FolderKind, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into, which takes its place at the end of the block, or is gone when the block fails.

    Where a folder of its kind is replaced, the two change places in one step; whatever lineas did not write stays.

    Args:
        overwrite: whether one of its kind may be replaced.
    """
    check_folder(path, overwrite, kind)
    named, path = path, path.resolve()  # a link goes on to lead to it
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path.parent)
    try:
        with _temporary(path.parent, is_folder=True) as beside:
            yield beside
            names = write_mark(beside, kind)
            _set_modes(beside)
            if not path.exists() and not _moved(beside, path):  # another process may have been first
                check_folder(path, overwrite, kind)
            if beside.exists():
                _replace(path, beside, kind, names)
            signals.record_written(named)
    except OSError as error:
        raise _of_place(error, named) from None


@contextmanager
def cached_folder(path: Path) -> Iterator[Path]:
    """A folder of a cache to write into; where another process has made it meanwhile, that one stays."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path.parent)
    with _temporary(path.parent, is_folder=True) as beside:
        yield beside
        _set_modes(beside)
        try:
            beside.rename(path)
        except OSError:  # another process was first
            if not path.exists():
                raise


def remove_own(folder: Path, kind: FolderKind) -> None:
    """Remove from a folder what lineas wrote there, and the folder itself where nothing else is in it."""
    for name in own_files(folder, kind):
        (folder / name).unlink(missing_ok=True)
    _remove_empty(folder)


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Hold a folder until the end of the block or of the process, where the system has locks; nothing is written.

    Gives the open file that holds it: a process that has a copy of it holds the folder too. None without locks.
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


# ---- putting a folder into its place


def _replace(path: Path, new: Path, kind: FolderKind, names: frozenset[str]) -> None:
    """Put a new folder where one of its kind is; files of others go along."""

    def prepare(place: Path) -> tuple[frozenset[str], bool]:
        """Return lineas' own files there, and whether the new folder has those of others as well by now."""
        own = own_files(place, kind, path)
        others = [name for name in files_in(place) if name not in own]
        within = {above.as_posix() for name in names for above in Path(name).parents}
        taken = [name for name in others if name in names or name in within]
        if taken:
            raise LineasError(f"{path / taken[0]} was not written by lineas, so it is not overwritten; move it away.")
        return own, _link_others(place, new, others)

    with _alone_with(path):
        own, is_whole = steadily(path, prepare)
        if is_whole and _exchanged(path, new):
            _clear_old(new, path, own)
        else:
            _replace_files(path, new, kind, own, names)


@contextmanager
def _alone_with(path: Path) -> Iterator[None]:
    """Hold the folder at a path, which no other process replaces or clears up until the end of the block.

    A process that replaced it holds it until it has cleared up the older one, so processes take turns.
    """
    if fcntl is None:
        yield
        return
    while True:
        place = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(place, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(place), path.stat()):
                yield
                return
        finally:
            os.close(place)


def _exchanged(path: Path, new: Path) -> bool:
    """Let a folder and its successor change places; False, and nothing done, where the file system has no such step."""
    mode = stat.S_IMODE(path.stat().st_mode)
    new.chmod(mode)
    try:
        with signals.blocked(signals.ENDING):
            _exchange(path, new)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:
            raise
        return False
    return True


def _moved(new: Path, path: Path) -> bool:
    """Put a new folder where nothing is; False where there is something by now."""
    try:
        new.rename(path)
    except OSError:
        if not path.exists():
            raise
        return False
    return True


def _replace_files(path: Path, new: Path, kind: FolderKind, own: frozenset[str], names: frozenset[str]) -> None:
    """Replace the files of a folder one by one, the one that makes it one of its kind last."""
    old, made = ((read_mark(folder) or {}).get("files", {}) for folder in (path, new))
    either = {name: [facts[name] for facts in (old, made) if name in facts] for name in {**old, **made}}
    order = sorted(names - {MARK}, key=lambda name: (name == kind.last, name))
    with signals.blocked(signals.ENDING):
        write_text(path / MARK, mark_text(kind.mark, either))
        for name in order:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).replace(path / name)
        for name in own - names:
            (path / name).unlink(missing_ok=True)
        (new / MARK).replace(path / MARK)


def _link_others(path: Path, new: Path, others: list[str]) -> bool:
    """Give a new folder the files of others that lie in the old one, as further names of the same files.

    False where the file system has no hard links, or something there can have none; then it has none of them.
    """
    for folder in sorted(p for p in path.rglob("*") if p.is_dir() and not p.is_symlink()):
        made = new / folder.relative_to(path)
        made.mkdir(exist_ok=True)
        made.chmod(stat.S_IMODE(folder.stat().st_mode))
    for name in others:
        try:
            (new / name).unlink(missing_ok=True)  # of an attempt before
            os.link(path / name, new / name, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError:
            for linked in others:
                (new / linked).unlink(missing_ok=True)
            return False
    return True


def _clear_old(old: Path, path: Path, own: frozenset[str]) -> None:
    """Remove the folder that was exchanged; what somebody has put there meanwhile goes to the new one."""
    for name in sorted(files_in(old), key=MARK.__eq__):  # the mark last: a folder without it would be removed whole
        file, there = old / name, path / name
        if name in own or (os.path.lexists(there) and os.path.samestat(file.lstat(), there.lstat())):
            file.unlink(missing_ok=True)
        elif not os.path.lexists(there):
            there.parent.mkdir(parents=True, exist_ok=True)
            file.rename(there)
    _remove_empty(old)


def _remove_empty(folder: Path) -> None:
    """Remove a folder and those in it, as far as they are empty."""
    for inner in sorted((p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True):
        with suppress(OSError):
            inner.rmdir()
    with suppress(OSError):
        folder.rmdir()


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
"""Errors of `_exchange` where the system, the file system or a sandbox has no such step."""


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places in one step (renameat2 of Linux)."""
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, "no exchange of folders here")
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, "no exchange of folders here")
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


# ---- temporary names


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A folder within another to write into, gone at the end of the block with what is still in it."""
    with _temporary(folder, is_folder=True) as scratch:
        yield scratch


@contextmanager
def _temporary(folder: Path, is_folder: bool) -> Iterator[Path]:
    """A new file or folder of a short name of its own, locked until the block ends; gone unless it was renamed."""
    beside, lock = _begun(folder, is_folder)
    try:
        yield beside
    finally:
        with suppress(FileNotFoundError):  # what was exchanged nobody holds: another process may clear it up
            _remove_temporary(beside)
        if lock is not None:
            os.close(lock)


def _begun(folder: Path, is_folder: bool) -> tuple[Path, int | None]:
    """Make a temporary file or folder and lock it; where another process has cleared it away in between, anew."""
    while True:
        if is_folder:
            beside = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder))
        else:
            with tempfile.NamedTemporaryFile(prefix=TEMPORARY, dir=folder, delete=False) as file:
                beside = Path(file.name)
        if fcntl is None:
            return beside, None
        try:
            lock = os.open(beside, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if beside.exists():
            return beside, lock
        os.close(lock)


def _clear_leftovers(folder: Path) -> None:
    """Remove what killed processes have left beside their places: temporary names that nobody holds any more."""
    if fcntl is None:
        return
    for left in folder.glob(f"{TEMPORARY}*"):
        if not LEFTOVER.fullmatch(left.name) or left.is_symlink():
            continue
        try:
            lock = os.open(left, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_temporary(left)
        except OSError:  # somebody is at work there
            pass
        finally:
            os.close(lock)


def _remove_temporary(left: Path) -> None:
    """Remove a temporary file or folder; of a folder that was exchanged, whatever lineas did not write stays."""
    if not left.exists():
        return
    if not left.is_dir():
        left.unlink(missing_ok=True)
        return
    marked = read_mark(left)
    if marked is None:  # it was never whole, so nothing in it is anybody's but lineas'
        shutil.rmtree(left, ignore_errors=True)
    else:
        for name in sorted(files_in(left), key=MARK.__eq__):
            if name == MARK or name in marked["files"] or (left / name).lstat().st_nlink > 1:
                (left / name).unlink(missing_ok=True)
        _remove_empty(left)
    if left.exists():
        warnings.warn(f"{left} holds files that lineas did not write; they stay there.", stacklevel=2)


def _set_modes(folder: Path) -> None:
    """Give a folder and all in it the modes that the user's umask asks for."""
    umask = _umask()
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _umask() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:"))
    except (OSError, StopIteration, ValueError):
        mask = os.umask(0o022)
        os.umask(mask)
        return mask


def _of_place(error: OSError, named: Path) -> OSError:
    """The same error with the user's name in place of a temporary one."""
    if TEMPORARY not in str(error.filename or ""):
        return error
    return OSError(error.errno or 0, error.strerror or str(error), str(named))
