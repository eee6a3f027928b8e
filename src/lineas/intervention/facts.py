"""The facts of an intervention: keys and types, as in `intervention.json` and docs/reference/artifact.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, get_args, get_origin, get_type_hints

from lineas.checks import as_number
from lineas.errors import LineasError, shown
from lineas.files.strict_json import step_to


class MethodFacts(TypedDict):
    """The method of learning; its settings are further keys."""

    name: str


class PromptFacts(TypedDict, total=False):
    """The prompts of one side: the file they come from, their number, and the sha256 of their lines."""

    file: str
    count: Any
    sha256: str


class _Strength(TypedDict):
    strength: float


class CalibrationFacts(_Strength, total=False):
    """The strength that `lineas calibrate` found; its goals and settings are further keys."""

    reached: bool


class GateFacts(TypedDict, total=False):
    """The gates of an intervention; `area` is the mean area under the ROC curve, 0 to 1."""

    area: float


class Facts(TypedDict, total=False):
    """The facts that lineas writes and reads; anything else that JSON holds is allowed beside them.

    A fact whose type is `Any` is recorded for people, and may have any type.
    """

    name: str
    method: MethodFacts
    pooling: str
    seed: int
    samples: int | None  # prompts drawn from each file
    max_length: Any
    dtype: Any
    data: dict[str, PromptFacts]  # "source" and "target", and "neutral" if the method measures damage
    divergence: float  # from the untouched model at strength 1, on the neutral prompts
    drawing: Any  # settings of a pipeline
    start: Any  # the facts of the maps that learning began with
    on: Any  # the facts of the intervention in place while learning
    cost: list[float]  # before each step
    cost_after: float  # with the maps in place
    steps_done: Any
    interrupted: Any  # {"done": 4, "of": 20}
    moves_output: Any  # False if the network's output does not depend on the maps
    folds: dict[str, str]  # by site name
    calibration: CalibrationFacts
    measurements: list[dict[str, float]]  # one row per "strength"
    gate: GateFacts
    seconds: float
    made_by: Any  # the operation that made it of other interventions
    of: Any  # the facts of those interventions
    versions: Any
    created: Any


def check_facts(facts: Any) -> None:
    """Refuse facts that are not of the types declared in `Facts`; the error names the fact."""
    _check(facts, Facts, "facts")


def _check(value: Any, kind: Any, place: str) -> None:
    """Refuse a value that is not of a kind: a TypedDict, a dict, a list, an optional or a plain type."""
    inner = get_args(kind)
    if kind is Any or (type(None) in inner and value is None):
        return
    if hasattr(kind, "__required_keys__"):
        check_object(value, place)
        for key in kind.__required_keys__:
            member(value, key, place)
        for key, its_kind in get_type_hints(kind).items():
            if key in value:
                _check(value[key], its_kind, f"{place}{step_to(key)}")
    elif get_origin(kind) is dict:
        check_object(value, place)
        for key, one in value.items():
            _check(one, inner[1], f"{place}{step_to(key)}")
    elif get_origin(kind) is list:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise LineasError(f"{place} is {shown(value)}, not a list.")
        for i, one in enumerate(value):
            _check(one, inner[0], f"{place}[{i}]")
    else:
        PLAIN[inner[0] if inner else kind](value, place)


def check_object(value: Any, place: str) -> None:
    """Refuse anything but a dict with texts as keys; `place` is for the sentence."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise LineasError(f"{place} is {shown(value)}, not an object with texts as keys.")


def member(value: Mapping[str, Any], key: str, place: str) -> Any:
    """Return the value of a key, which must be there; `place` is for the sentence."""
    if key not in value:
        raise LineasError(f"{place} lacks {key!r}.")
    return value[key]


def check_text(value: Any, place: str) -> None:
    """Refuse anything but a text; `place` is for the sentence."""
    if not isinstance(value, str):
        raise LineasError(f"{place} is {shown(value)}, not a text.")


def as_float(value: Any, place: str) -> float:
    """Return a finite number as a float, and refuse anything else; `place` is for the sentence."""
    if type(value) is not int and not isinstance(value, float):
        raise LineasError(f"{place} is {shown(value)}, not a number.")
    return as_number(value, place)


def _check_whole(value: Any, place: str) -> None:
    if type(value) is not int:
        raise LineasError(f"{place} is {shown(value)}, not a whole number.")


def _check_bool(value: Any, place: str) -> None:
    if not isinstance(value, bool):
        raise LineasError(f"{place} is {shown(value)}, not true or false.")


PLAIN = {str: check_text, int: _check_whole, float: as_float, bool: _check_bool}
"""The check of each plain type."""
