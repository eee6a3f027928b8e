"""Atomic writes: a file or folder is written under a temporary name, and renamed when it is complete."""

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
"""The beginning of temporary names; the files and folders are locked while they are written."""
LEFTOVER = re.compile(rf"{re.escape(TEMPORARY)}[a-z0-9_]{{8}}")
"""A whole temporary name, as Python's tempfile makes it."""


# ---- before the work


def check_place(path: Path) -> None:
    """Refuse a path where nothing can be written, by trying; the folders above it may be missing."""
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
    """Write a file, and missing folders above it; after a failure the earlier file is still there."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which is renamed at the end of the block, or removed if the block fails.

    A device or a pipe is not replaced, but written to.
    """
    named, path = path, path.resolve()  # so that a link stays
    if path.exists() and not path.is_file():
        with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
            file = Path(folder) / path.name
            yield file
            with file.open("rb") as written, path.open("wb", buffering=0) as place:
                shutil.copyfileobj(written, place)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path.parent)
    try:
        with _temporary(path.parent, is_folder=False) as temporary:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            signals.record_written(named)
    except OSError as error:
        raise _of_place(error, named) from None


# ---- folders


@contextmanager
def new_folder(path: Path, kind: FolderKind, overwrite: bool = False) -> Iterator[Path]:
    """Yield a folder to write into, which is renamed at the end of the block, or removed if the block fails.

    It replaces a folder of its kind in one step, if `overwrite` is True; files that lineas did not write stay.
    """
    check_folder(path, overwrite, kind)
    named, path = path, path.resolve()  # so that a link stays
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path.parent)
    try:
        with _temporary(path.parent, is_folder=True) as temporary:
            yield temporary
            names = write_mark(temporary, kind)
            _set_modes(temporary)
            if not path.exists() and not _moved(temporary, path):  # another process may have been first
                check_folder(path, overwrite, kind)
            if temporary.exists():
                _replace(path, temporary, kind, names)
            signals.record_written(named)
    except OSError as error:
        raise _of_place(error, named) from None


@contextmanager
def cached_folder(path: Path) -> Iterator[Path]:
    """Yield a folder of a cache to write into; if another process has made it meanwhile, that one stays."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path.parent)
    with _temporary(path.parent, is_folder=True) as temporary:
        yield temporary
        _set_modes(temporary)
        _moved(temporary, path)  # another process may be first


def remove_own(folder: Path, kind: FolderKind) -> None:
    """Remove the files of lineas from a folder, and the folder if it is empty then."""
    for name in own_files(folder, kind):
        (folder / name).unlink(missing_ok=True)
    _remove_empty(folder)


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Hold a folder until the end of the block or of the process; nothing is written.

    Yields:
        the open file that holds it (a process with a copy of it holds the folder too), or None on a system without
        locks.
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
    """Replace a folder by a new one of its kind, which gets the files of others too."""

    def prepare(place: Path) -> tuple[frozenset[str], bool]:
        """Return the files of lineas in the old folder, and whether the new folder has the files of others now."""
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
    """Hold the folder at a path, so that no other process replaces it or removes it until the end of the block.

    A process holds its new folder until it has removed the old one, so processes take turns.
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
    """Swap a folder and its successor; return False if the file system cannot do it."""
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
    """Rename a new folder; return False if something has that name by now."""
    try:
        new.rename(path)
    except OSError:
        if not path.exists():
            raise
        return False
    return True


def _replace_files(path: Path, new: Path, kind: FolderKind, own: frozenset[str], names: frozenset[str]) -> None:
    """Replace the files of a folder one by one, the one that identifies the kind last."""
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
    """Give a new folder hard links to the files of others in the old one.

    Return False, without any links, if the file system or a file allows none.
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
    """Remove the old folder; files that somebody has put there meanwhile move to the new one."""
    for name in sorted(files_in(old), key=MARK.__eq__):  # the mark last: a folder without it would be removed whole
        file, there = old / name, path / name
        if name in own or (os.path.lexists(there) and os.path.samestat(file.lstat(), there.lstat())):
            file.unlink(missing_ok=True)
        elif not os.path.lexists(there):
            there.parent.mkdir(parents=True, exist_ok=True)
            file.rename(there)
    _remove_empty(old)


def _remove_empty(folder: Path) -> None:
    """Remove the empty folders in a folder, and the folder itself if it is empty then."""
    for inner in sorted((p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True):
        with suppress(OSError):
            inner.rmdir()
    with suppress(OSError):
        folder.rmdir()


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
"""Errors of `_exchange` if the system, the file system or a sandbox does not support it."""


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step (renameat2 of Linux)."""
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
    """Yield a temporary folder within another, which is removed at the end of the block."""
    with _temporary(folder, is_folder=True) as scratch:
        yield scratch


@contextmanager
def _temporary(folder: Path, is_folder: bool) -> Iterator[Path]:
    """Yield a new file or folder with a temporary name, locked until the block ends; removed unless it was renamed."""
    temporary, lock = _begun(folder, is_folder)
    try:
        yield temporary
    finally:
        with suppress(FileNotFoundError):  # the old folder of a swap is not locked: another process may remove it
            _remove_temporary(temporary)
        if lock is not None:
            os.close(lock)


def _begun(folder: Path, is_folder: bool) -> tuple[Path, int | None]:
    """Make a temporary file or folder and lock it; try again if another process has removed it in between."""
    while True:
        if is_folder:
            temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder))
        else:
            with tempfile.NamedTemporaryFile(prefix=TEMPORARY, dir=folder, delete=False) as file:
                temporary = Path(file.name)
        if fcntl is None:
            return temporary, None
        try:
            lock = os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, lock
        os.close(lock)


def _clear_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of killed processes, which nobody holds any more."""
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
        except OSError:  # another process holds it
            pass
        finally:
            os.close(lock)


def _remove_temporary(left: Path) -> None:
    """Remove a temporary file or folder; in the old folder of a swap, files that lineas did not write stay."""
    if not left.exists():
        return
    if not left.is_dir():
        left.unlink(missing_ok=True)
        return
    marked = read_mark(left)
    if marked is None:  # it was never complete, so all in it is of lineas
        shutil.rmtree(left, ignore_errors=True)
    else:
        for name in sorted(files_in(left), key=MARK.__eq__):
            if name == MARK or name in marked["files"] or (left / name).lstat().st_nlink > 1:
                (left / name).unlink(missing_ok=True)
        _remove_empty(left)
    if left.exists():
        warnings.warn(f"{left} holds files that lineas did not write; they stay there.", stacklevel=2)


def _set_modes(folder: Path) -> None:
    """Set the modes of a folder and all in it to those of the user's umask."""
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
    """Return an error with the user's name instead of a temporary one."""
    if TEMPORARY not in str(error.filename or ""):
        return error
    return OSError(error.errno or 0, error.strerror or str(error), str(named))
