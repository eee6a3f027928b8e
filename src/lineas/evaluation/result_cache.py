"""A cache of the finished parts of an evaluation in a folder, from which an interrupted one goes on."""

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
"""Version of the keys; results under keys of an earlier version are not used."""


class ResultCache:
    """Results of finished parts, each in a file of its own; without a folder, nothing is cached.

    A file holds the result and its key, which is everything that the result depends on. A result is used only if its
    key is the same. `of` is the part of the key that all results share, as JSON.
    """

    def __init__(self, folder: str | Path | None, of: dict[str, Any]) -> None:
        self._folder = None if folder is None else Path(folder)
        self._of = of
        if self._folder is not None and self._folder.exists() and not self._folder.is_dir():
            raise LineasError(f"{folder} is a file; name a folder for the cached results.")

    @classmethod
    def of_model(
        cls, folder: str | Path | None, model: TextModel | ImageModel, **more: Callable[[], Any]
    ) -> ResultCache:
        """Return the cache for a model; nothing is cached if code that acts on the model cannot be described.

        `more` are functions that give further parts of the key by name, called only if there is a cache.
        """
        if folder is None:
            return cls(None, {})
        try:
            about = {**description(model), **{name: describe() for name, describe in more.items()}}
        except Unknowable as error:
            warnings.warn(f"nothing of this evaluation is cached, or taken from the cache: {error}", stacklevel=3)
            return cls(None, {})
        return cls(folder, {**about, **packages()})

    def get_or_make(
        self, part_key: dict[str, Any], make: Callable[[], Any], fits: Callable[[Any], bool] = lambda result: True
    ) -> tuple[Any, bool]:
        """Return the cached result, computing it if missing, and whether it was cached.

        Args:
            part_key: part of the key for this result alone; its entry `part` names the kind of result.
            fits: function that tells whether a cached result has the right form.
        """
        if self._folder is None:
            return make(), False
        key = json.loads(json.dumps({"scheme": SCHEME, **self._of, **part_key}))  # as the file holds it
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:24]
        file = self._folder / f"{part_key['part']}-{digest}.json"
        try:
            cached = strict_json.loads(strict_json.read_bytes(file))
            if cached["key"] == key and fits(cached["result"]):
                return cached["result"], True
        except (LineasError, LookupError, TypeError, AttributeError):
            pass  # the file is missing, has another form, or was cut off when a run ended
        result = make()
        try:
            text = strict_json.dumps({"key": key, "result": result}, indent=None)
        except LineasError:  # results that are not finite are not cached
            return result, False
        try:
            write_text(file, text)
        except OSError as error:  # the result itself is not lost
            warnings.warn(f"a part of the evaluation could not be cached in {self._folder}: {error}.", stacklevel=2)
        return result, False


def digest_of(texts: Sequence[str]) -> str:
    """Return the sha256 of a list of texts, which differs for any other list."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def content_of(name: str, excluded: Path | None = None) -> str | None:
    """Return a digest of the content behind a name: the bytes of a folder or a Python module, the commit of a hub id.

    The name is one of a model, a judge of pictures or a classifier. The digest is None if nothing of that name is on
    this machine. The folder `excluded` is ignored, even if it is in the folder of that name.
    """
    place = name.partition("@")[0]  # after it comes the label of a classifier
    if Path(place).is_dir():
        return files_digest(Path(place), excluded=excluded)
    if (module := Path(f"{place.partition(':')[0].replace('.', '/')}.py")).is_file():
        return files_digest(module.parent, module.name)
    if "+" in place:  # two models that judge pictures
        return " ".join(str(content_of(part, excluded)) for part in place.split("+"))
    try:
        config = try_to_load_from_cache(place, "config.json") if place.count("/") == 1 else None
    except ValueError:  # the hub cannot have this name
        return None
    return Path(config).parent.name if isinstance(config, str) else None
