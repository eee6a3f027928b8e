"""The outputs of a command, checked before any work: against what is there, what it reads, and its other outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lineas.errors import LineasError
from lineas.files.ownership import FileKind, FolderKind, check_file, check_folder, json_of
from lineas.files.writing import check_place
from lineas.intervention.intervention import Intervention


@dataclass(frozen=True)
class Output:
    """One file or folder that a command writes.

    Args:
        option: as the user gave it, such as "--out".
        path: its place; None, or "-" for standard output, where nothing is written.
        kind: what it will be; None for a folder that is claimed and worked in.
    """

    option: str
    path: Path | None
    kind: FileKind | FolderKind | None

    @property
    def is_written(self) -> bool:
        """Return whether a place on the disk is written."""
        return self.path is not None and str(self.path) != "-"


def check_outputs(
    verb: str,
    json: Path | None,
    *outputs: Output,
    force: bool = False,
    inputs: Iterable[object] = (),
) -> None:
    """Refuse, before any work, what a command could not or should not write.

    Args:
        verb: of the command.
        json: its `--json`.
        outputs: what else it writes.
        force: whether what lineas wrote there may be replaced.
        inputs: what it reads, as the user gave it: files with or without a column, folders, names, None.

    Raises:
        LineasError: for a place that cannot be written or is needed for something else, and for what others wrote.
    """
    written = [one for one in (*outputs, Output("--json", json, json_of(verb))) if one.is_written]
    reads = {place: text for one in inputs for text, place in _places(one)}
    places: dict[Path, str] = {}
    for one in written:
        assert one.path is not None
        check_place(one.path)
        place = one.path.resolve()
        if place in reads:
            raise LineasError(f"{one.option} {one.path} is what the command reads; choose another place.")
        for other, option in places.items():
            if place == other or other in place.parents or place in other.parents:
                raise LineasError(
                    f"{one.option} and {option} are one place ({one.path}); choose another for one of them."
                )
        places[place] = one.option
        if isinstance(one.kind, FolderKind):
            check_folder(one.path, force, one.kind)
        elif one.kind is not None:
            if not place.parent.is_dir() and one.option == "--json":
                raise LineasError(f"the folder of {one.path} does not exist; make it first.")
            check_file(one.path, force, one.kind)


def save_or_rescue(learned: Intervention, out: Path, force: bool) -> None:
    """Save an intervention; where that fails, save it elsewhere and say where.

    Raises:
        LineasError: when it is not in its place.
    """
    try:
        learned.save(out, overwrite=force)
    except (LineasError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        elsewhere = Path(tempfile.mkdtemp(prefix="lineas-")) / out.name
        learned.save(elsewhere)
        raise LineasError(
            f"{out} could not be written ({reason.rstrip('.')}); what was made is in {elsewhere}."
        ) from None


def _places(given: object) -> list[tuple[str, Path]]:
    """Return the places on the disk that a named input leads to: as it is, without its column, each part of `a+b`."""
    if isinstance(given, (list, tuple)):
        return [place for one in given for place in _places(one)]
    if given is None:
        return []
    text = str(given)
    spellings = {text, text.rpartition(":")[0], text.partition("=")[2], *text.split("+")} - {""}
    found = []
    for one in spellings:
        try:
            if Path(one).exists():
                found.append((text, Path(one).resolve()))
        except (OSError, ValueError):  # no name that a file can have
            continue
    return found
