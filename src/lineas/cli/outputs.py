"""Checks of the outputs of a command before any work: against existing files, its inputs, and its other outputs."""

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
        option: option that names the output, such as "--out".
        path: path of the file or folder; None if it is not written, "-" for standard output.
        kind: kind of the file or folder; None for a working folder, which is claimed later.
    """

    option: str
    path: Path | None
    kind: FileKind | FolderKind | None

    @property
    def is_written(self) -> bool:
        """Whether the output is written on the disk."""
        return self.path is not None and str(self.path) != "-"


def check_outputs(
    verb: str, json: Path | None, *outputs: Output, force: bool = False, inputs: Iterable[object] = ()
) -> None:
    """Refuse outputs that the command cannot or should not write.

    Args:
        force: whether earlier outputs of lineas may be replaced.
        inputs: its inputs as the user wrote them: files with or without a column, folders, names, None.
    """
    written = [one for one in (*outputs, Output("--json", json, json_of(verb))) if one.is_written]
    read = {place for one in inputs for place in _places(one)}
    options: dict[Path, str] = {}
    for one in written:
        assert one.path is not None
        check_place(one.path)
        place = one.path.resolve()
        if place in read:
            raise LineasError(f"{one.option} {one.path} is what the command reads; choose another place.")
        for other, option in options.items():
            if place == other or other in place.parents or place in other.parents:
                raise LineasError(
                    f"{one.option} and {option} are one place ({one.path}); choose another for one of them."
                )
        options[place] = one.option
        if isinstance(one.kind, FolderKind):
            check_folder(one.path, force, one.kind)
        elif one.kind is not None:
            if not place.parent.is_dir() and one.option == "--json":
                raise LineasError(f"the folder of {one.path} does not exist; make it first.")
            check_file(one.path, force, one.kind)


def save_or_rescue(learned: Intervention, out: Path, force: bool) -> None:
    """Save an intervention; if that fails, save it in a temporary folder, which the error names."""
    try:
        learned.save(out, overwrite=force)
    except (LineasError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        elsewhere = Path(tempfile.mkdtemp(prefix="lineas-")) / out.name
        learned.save(elsewhere)
        raise LineasError(
            f"{out} could not be written ({reason.rstrip('.')}); what was made is in {elsewhere}."
        ) from None


def _places(source: object) -> list[Path]:
    """Return the existing paths that an input may mean: as written, without its column, each part of `a+b`."""
    if isinstance(source, (list, tuple)):
        return [place for one in source for place in _places(one)]
    text = "" if source is None else str(source)
    places = []
    for name in {text, text.rpartition(":")[0], text.partition("=")[2], *text.split("+")} - {""}:
        try:
            if Path(name).exists():
                places.append(Path(name).resolve())
        except (OSError, ValueError):  # a file cannot have this name
            continue
    return places
