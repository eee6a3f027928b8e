"""A cache of the finished parts of an evaluation, in a folder, so that an interrupted one goes on there."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from lineas.errors import LineasError
from lineas.files import strict_json
from lineas.files.writing import write_text
from lineas.models.digests import description, files_digest
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.models.untouched import Unknowable
from lineas.versions import packages

SCHEME = 2
"""Version of the keys; parts that were kept under an earlier one are left alone."""


class ResultCache:
    """Results of parts that are done, a file each, under everything they depend on.

    The file holds what it depends on beside the result, and is taken only where both are as they should be.

    Args:
        folder: where they are kept; None keeps nothing.
        of: what all parts depend on, as JSON holds it.
    """

    def __init__(self, folder: str | Path | None, of: dict[str, Any]) -> None:
        self._folder = None if folder is None else Path(folder)
        self._of = of
        if self._folder is not None and self._folder.exists() and not self._folder.is_dir():
            raise LineasError(f"{folder} is a file; name a folder for what is kept.")

    @classmethod
    def of_model(
        cls, folder: str | Path | None, model: TextModel | ImageModel, **more: Callable[[], Any]
    ) -> ResultCache:
        """Return what is kept of a model's results; nothing is, where nobody can tell what acts on the model.

        Args:
            folder: where they are kept; None keeps nothing.
            model: what is measured.
            more: by name, what else all parts depend on; called only where something is kept.
        """
        if folder is None:
            return cls(None, {})
        try:
            about = {**description(model), **{name: told() for name, told in more.items()}}
        except Unknowable as error:
            warnings.warn(f"nothing of this evaluation is kept, or taken from what was: {error}", stacklevel=3)
            return cls(None, {})
        return cls(folder, {**about, **packages()})

    def get_or_make(
        self, what: dict[str, Any], make: Callable[[], Any], fits: Callable[[Any], bool] = lambda result: True
    ) -> tuple[Any, bool]:
        """Return the cached result, making it if it is missing, and whether it was cached.

        Args:
            what: everything that this part depends on beside `of`; `part` names its kind.
            make: measures it.
            fits: whether a result that was read has the right form.
        """
        if self._folder is None:
            return make(), False
        key = json.loads(json.dumps({"scheme": SCHEME, **self._of, **what}))  # as the file holds it
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:24]
        file = self._folder / f"{what['part']}-{digest}.json"
        try:
            told = strict_json.loads(strict_json.read_bytes(file))
            if told["key"] == key and fits(told["result"]):
                return told["result"], True
        except (LineasError, LookupError, TypeError, AttributeError):
            pass  # not there, of another form, or cut off by whatever ended the run
        result = make()
        try:
            text = strict_json.dumps({"key": key, "result": result}, indent=None)
        except LineasError:  # a number that is not finite is measured anew
            return result, False
        try:
            write_text(file, text)
        except OSError as error:  # what is measured is not lost for it
            warnings.warn(f"a part of the evaluation could not be kept in {self._folder}: {error}.", stacklevel=2)
        return result, False


def digest_of(texts: Sequence[str]) -> str:
    """Return the sha256 of a list of texts, another for every list."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def content_of(name: str, apart: Path | None = None) -> str | None:
    """Return what tells the content behind a name: all bytes of a folder or a Python module, the commit of a hub id.

    Args:
        name: of a model, a judge of pictures or a classifier, as the command line takes it.
        apart: a folder that is no part of it, though it may lie in there.

    Returns:
        None where nothing of that name is on this machine.
    """
    place = name.partition("@")[0]  # behind it stands a classifier's label
    if Path(place).is_dir():
        return files_digest(Path(place), excluded=apart)
    if (module := Path(f"{place.partition(':')[0].replace('.', '/')}.py")).is_file():
        return files_digest(module.parent, module.name)
    if "+" in place:  # two models that judge pictures
        return " ".join(str(content_of(part, apart)) for part in place.split("+"))
    try:
        found = try_to_load_from_cache(place, "config.json") if place.count("/") == 1 else None
    except ValueError:  # no name that the hub knows
        return None
    return Path(found).parent.name if isinstance(found, str) else None
