"""A digest of the files that lm-eval tasks in a folder depend on: all files below it, and the data that they name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lineas.evaluation.plan import Plan
from lineas.models.digests import files_digest
from lineas.versions import version_of


def task_dependencies(plan: Plan, excluded: Path | None = None) -> dict[str, Any]:
    """Return everything beside the system that the results of a plan's tasks depend on, as JSON.

    `excluded` is a folder of results, which is ignored if it is in the folder of task files.
    """
    digest = None if plan.task_path is None else task_files_digest(plan.task_path, excluded)
    versions = {name: version_of(name) for name in ("lm_eval", "datasets")}
    return {"limit": plan.task_limit, "fewshot": plan.fewshot, "files": digest, **versions}


def task_files_digest(folder: str | Path, excluded: Path | None = None) -> str:
    """Return the sha256 of all files below a folder of tasks and of the data files elsewhere that its tasks name."""
    folder = Path(folder)
    tasks = [file for file in folder.rglob("*") if file.suffix in (".yaml", ".yml")]
    return files_digest(folder, others={file.resolve() for task in tasks for file in _named(task)}, excluded=excluded)


def _named(task: Path) -> list[Path]:
    """Return the other files that a task file names, such as its documents and the file that it includes."""
    settings = _read(task)
    includes = settings.get("include") or ()
    places = [task.parent / str(include) for include in ([includes] if isinstance(includes, str) else includes)]
    options = settings.get("dataset_kwargs")
    options = options if isinstance(options, dict) else {}
    for place in (settings.get("dataset_path"), options.get("data_dir")):
        if isinstance(place, str) and Path(place).exists():
            places += [Path(place), *Path(place).rglob("*")]
    for pattern in _texts(options.get("data_files")):
        if "://" not in pattern:
            whole = Path(str(options.get("data_dir") or ""), pattern)
            places += [whole] if whole.is_file() else Path(whole.anchor).glob(str(whole.relative_to(whole.anchor)))
    return [place for place in places if place.is_file()]


def _read(task: Path) -> dict[str, Any]:
    """Return the settings of a task file, without tags such as `!function`, which stand for code beside the file."""
    import yaml

    class Loader(yaml.SafeLoader):
        """A loader that reads every tag as None."""

    Loader.add_multi_constructor("!", lambda loader, tag, node: None)
    try:
        settings = yaml.load(task.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}  # lm-eval reports the mistake
    return settings if isinstance(settings, dict) else {}


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in nested lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
