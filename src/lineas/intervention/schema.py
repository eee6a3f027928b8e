"""The content of an artifact: its JSON and its tensors, checked against each other (docs/reference/artifact.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch

from lineas.errors import LineasError, shown
from lineas.files.strict_json import step_to
from lineas.intervention.gate import Gate
from lineas.intervention.maps import AffineMap, as_number, check_numbers, in_float32
from lineas.intervention.model_identity import ModelIdentity
from lineas.sites import Site

FORMAT, GATED = 1, 2
"""Versions of the folder; with gates it is the second, which a lineas that knows none refuses."""
MOST_NEURONS = 2**20
"""Neurons of one site: more than any network has."""
MOST_IN_ALL = 2**28
"""Neurons of all sites."""
MOST_FILLED = 2**26
"""Neurons of all sites that store some of them by an index: in memory they are whole."""
BYTES_A_NEURON, BYTES_A_SITE = 32, 4096
"""Bytes that the tensors of a site take at most: two numbers, an index and a gate, in the widest types; their names."""
MAP_KINDS, GATE_KINDS = ("scale", "shift"), ("gate_weight", "gate_bias")
SITE_KEYS = {"module", "output", "neuron_axis", "width", "touched", "folds"}


@dataclass(frozen=True)
class Parts:
    """The parts of an artifact.

    Args:
        maps: by site name, in the order of the JSON.
        sites: by site name.
        base: the network it was learned on.
        facts: what else is known.
        gates: by site name, for those that have one.
    """

    maps: dict[str, AffineMap]
    sites: dict[str, Site]
    base: ModelIdentity | None
    facts: dict[str, Any]
    gates: dict[str, Gate]


@dataclass(frozen=True)
class Outline:
    """The content of the JSON alone, before any tensor is read.

    Args:
        gated: whether there are gates.
        sites: by site name, in order.
        widths: by site name, its neurons.
        touched: by site name, how many of them the map touches.
        folds: by site name, how it folds.
        support: the share of all neurons that are touched.
        base: the network it was learned on.
        facts: what else is known.
    """

    gated: bool
    sites: dict[str, Site]
    widths: dict[str, int]
    touched: dict[str, int]
    folds: dict[str, str]
    support: float
    base: ModelIdentity | None
    facts: dict[str, Any]

    @property
    def most_bytes(self) -> int:
        """The largest file that the tensors of these sites can fill."""
        return BYTES_A_SITE * (1 + len(self.sites)) + BYTES_A_NEURON * sum(self.widths.values())


def check(description: Any, tensors: Mapping[str, torch.Tensor]) -> Parts:
    """Return what a description and its tensors mean together, once every word of it is true.

    Args:
        description: what `intervention.json` says.
        tensors: what `intervention.safetensors` holds, by name.

    Raises:
        LineasError: naming the first thing that is missing, of a wrong type, or that the two files say differently.
    """
    return filled(outline(description), tensors)


# ---- the JSON


def outline(description: Any) -> Outline:
    """Return what the JSON of an artifact says, where it is one.

    Args:
        description: what `intervention.json` says.

    Raises:
        LineasError: naming what is missing, of a wrong type or too large.
    """
    _object(description, "intervention.json")
    version = _of(description, "format", "intervention.json")
    if type(version) is not int:
        raise LineasError(f"its 'format' is {shown(version)}, not a whole number.")
    if version not in (FORMAT, GATED):
        raise LineasError(f"it has format {version}, and this lineas reads {FORMAT} and {GATED}; upgrade lineas.")
    entries = _of(description, "sites", "intervention.json")
    if not isinstance(entries, list) or not entries:
        raise LineasError(f"its 'sites' are {shown(entries)}, not a list of at least one site.")
    facts = description.get("facts", {})
    check_facts(facts)
    if not isinstance(description.get("operation", ""), str):
        raise LineasError(f"its 'operation' is {shown(description['operation'])}, not a text.")
    sites: dict[str, Site] = {}
    widths: dict[str, int] = {}
    touched: dict[str, int] = {}
    folds: dict[str, str] = {}
    for i, entry in enumerate(entries):
        site = _site(entry, f"sites[{i}]")
        if site.name in sites:
            raise LineasError(f"the site {shown(site.name)} is listed twice.")
        sites[site.name], widths[site.name] = site, entry["width"]
        touched[site.name], folds[site.name] = entry["touched"], entry["folds"]
    if (total := sum(widths.values())) > MOST_IN_ALL:
        raise LineasError(f"its sites have {total:,} neurons, more than the {MOST_IN_ALL:,} that any network has.")
    support = _number(_of(description, "support", "intervention.json"), "support")
    return Outline(version == GATED, sites, widths, touched, folds, support, _base(description.get("model")), facts)


def check_facts(facts: Any) -> None:
    """Refuse facts that are not what the verbs read: each that is known has its type; others are free.

    Raises:
        LineasError: naming the fact.
    """
    _object(facts, "facts")
    for name, refuse_unless in KNOWN_FACTS.items():
        if name in facts:
            refuse_unless(facts[name], f"facts.{name}")


def _site(entry: Any, place: str) -> Site:
    _object(entry, place)
    for key in SITE_KEYS:
        _of(entry, key, place)
    if unknown := entry.keys() - SITE_KEYS:
        raise LineasError(f"{place} has the key {shown(min(unknown))}, which this format does not know.")
    width, touched = entry["width"], entry["touched"]
    if type(width) is not int or not 1 <= width <= MOST_NEURONS:
        raise LineasError(f"{place}.width is {shown(width)}, not a whole number from 1 to {MOST_NEURONS:,}.")
    if type(touched) is not int or not 0 <= touched <= width:
        raise LineasError(f"{place}.touched is {shown(touched)}, not a whole number from 0 to its width.")
    _text(entry["folds"], f"{place}.folds")
    if entry["module"] == "":
        raise LineasError(f"{place}.module is '', and a map acts on a module of the network, not on all of it.")
    with _within(place):
        return Site(entry["module"], entry["output"], entry["neuron_axis"])


def _base(model: Any) -> ModelIdentity | None:
    if model is None:
        return None
    _object(model, "model")
    known = {one.name: one.default is MISSING for one in fields(ModelIdentity)}
    for key in (key for key, needed in known.items() if needed):
        _of(model, key, "model")
    if unknown := model.keys() - known.keys():
        raise LineasError(f"model has the key {shown(min(unknown))}, which this format does not know.")
    return ModelIdentity(**model)


# ---- facts


def _object(value: Any, place: str) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise LineasError(f"{place} is {shown(value)}, not an object with texts as keys.")


def _list(value: Any, place: str) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise LineasError(f"{place} is {shown(value)}, not a list.")


def _text(value: Any, place: str) -> None:
    if not isinstance(value, str):
        raise LineasError(f"{place} is {shown(value)}, not a text.")


def _number(value: Any, place: str) -> float:
    if type(value) is not int and not isinstance(value, float):
        raise LineasError(f"{place} is {shown(value)}, not a number.")
    return as_number(value, place)


def _whole(value: Any, place: str) -> None:
    if type(value) is not int:
        raise LineasError(f"{place} is {shown(value)}, not a whole number.")


def _of(value: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in value:
        raise LineasError(f"{place} lacks {key!r}.")
    return value[key]


def _method(value: Any, place: str) -> None:
    _object(value, place)
    _text(_of(value, "name", place), f"{place}.name")


def _data(value: Any, place: str) -> None:
    _object(value, place)
    for side, told in value.items():
        _object(told, f"{place}{step_to(side)}")
        for key in told.keys() & {"file", "sha256"}:
            _text(told[key], f"{place}{step_to(side)}.{key}")


def _calibration(value: Any, place: str) -> None:
    _object(value, place)
    _number(_of(value, "strength", place), f"{place}.strength")
    if not isinstance(value.get("reached", True), bool):
        raise LineasError(f"{place}.reached is {shown(value['reached'])}, not true or false.")


def _measurements(value: Any, place: str) -> None:
    _list(value, place)
    for i, row in enumerate(value):
        _object(row, f"{place}[{i}]")
        for name, number in row.items():
            _number(number, f"{place}[{i}]{step_to(name)}")


def _cost(value: Any, place: str) -> None:
    _list(value, place)
    for i, number in enumerate(value):
        _number(number, f"{place}[{i}]")


def _folds(value: Any, place: str) -> None:
    _object(value, place)
    for site, how in value.items():
        _text(how, f"{place}{step_to(site)}")


def _gate(value: Any, place: str) -> None:
    _object(value, place)
    if "area" in value:
        _number(value["area"], f"{place}.area")


def _samples(value: Any, place: str) -> None:
    if value is not None:
        _whole(value, place)


KNOWN_FACTS: dict[str, Callable[[Any, str], object]] = {
    "name": _text,
    "method": _method,
    "pooling": _text,
    "seed": _whole,
    "samples": _samples,
    "data": _data,
    "cost": _cost,
    "folds": _folds,
    "calibration": _calibration,
    "measurements": _measurements,
    "gate": _gate,
    "seconds": _number,
}
"""By name, what refuses a fact that is not of the type in which some verb reads it."""


# ---- the tensors


def filled(outlined: Outline, tensors: Mapping[str, torch.Tensor]) -> Parts:
    """Return the parts of an artifact: its outline with the numbers of its tensors.

    Args:
        outlined: what its JSON says.
        tensors: by name, `SITE.scale` and the others.

    Raises:
        LineasError: when a tensor belongs to no site or is none of a map or gate, or the JSON says otherwise.
    """
    by_site: dict[str, dict[str, torch.Tensor]] = {name: {} for name in outlined.sites}
    for key, tensor in sorted(tensors.items()):
        name, _, kind = key.rpartition(".")
        if kind not in (*MAP_KINDS, *GATE_KINDS, "index"):
            raise LineasError(f"the tensor {shown(key)} is none of a map or a gate.")
        if name not in by_site:
            raise LineasError(f"the tensor {shown(key)} belongs to none of its {len(by_site)} sites.")
        by_site[name][kind] = tensor
    indexed = sum(outlined.widths[name] for name, own in by_site.items() if "index" in own)
    if indexed > MOST_FILLED:
        raise LineasError(f"{indexed:,} neurons are to be filled in by an index, more than {MOST_FILLED:,}.")
    maps: dict[str, AffineMap] = {}
    gates: dict[str, Gate] = {}
    for name, own in by_site.items():
        with _within(f"the site {shown(name)}"):
            maps[name] = _map(outlined.widths[name], own)
            if gate := _gate_of(outlined.widths[name], own):
                gates[name] = gate
            touches = int(maps[name].support().sum())
            if touches != outlined.touched[name]:
                raise LineasError(f"it touches {touches} neurons, and the JSON says {outlined.touched[name]}.")
        known = outlined.facts.get("folds", {}).get(name, "unknown")
        if outlined.folds[name] != known:
            raise LineasError(f"{shown(name)} folds {shown(outlined.folds[name])} and, in the facts, {shown(known)}.")
    touched, total = sum(outlined.touched.values()), sum(outlined.widths.values())
    if not math.isclose(outlined.support, touched / total, abs_tol=1e-6):
        raise LineasError(f"its 'support' is {outlined.support:g}, and its sites touch {touched} of {total} neurons.")
    if outlined.gated != bool(gates):
        raise LineasError(
            f"it has format {GATED if outlined.gated else FORMAT} and {len(gates)} gates; with gates the format is "
            f"{GATED}, without them {FORMAT}."
        )
    return Parts(maps, outlined.sites, outlined.base, outlined.facts, gates)


def _map(width: int, own: Mapping[str, torch.Tensor]) -> AffineMap:
    """The map of one site; where nothing is stored it takes no memory."""
    stored = {kind: own[kind] for kind in MAP_KINDS if kind in own}
    index = own.get("index")
    if index is not None:
        _check_index(index, width)
        if not stored:
            raise LineasError("there is an index, and neither a scale nor a shift.")
    if not stored:
        return AffineMap.empty(width)
    neurons = width if index is None else len(index)
    whole = AffineMap.identity(width)
    values = {"scale": whole.scale, "shift": whole.shift}
    for kind, numbers in stored.items():
        check_numbers(numbers, f"its {kind}")
        if numbers.dim() != 1 or len(numbers) != neurons:
            size = f"{len(numbers)} neurons" if numbers.dim() == 1 else f"shape {list(numbers.shape)}"
            raise LineasError(f"its {kind} has {size}, not {neurons}.")
        single = in_float32(numbers, f"its {kind}")
        values[kind] = single if index is None else values[kind].index_copy_(0, index.long(), single)
    return AffineMap(**values)


def _check_index(index: Any, width: int) -> None:
    if not isinstance(index, torch.Tensor) or index.dtype is not torch.int32 or index.dim() != 1 or not len(index):
        given = f"a tensor {list(index.shape)} of {index.dtype}" if isinstance(index, torch.Tensor) else shown(index)
        raise LineasError(f"its index is {given}, not int32 numbers [n] with n from 1 on.")
    if int(index.min()) < 0 or int(index.max()) >= width:
        raise LineasError(f"its index goes from {int(index.min())} to {int(index.max())}, and it has {width} neurons.")
    if not bool((index[1:] > index[:-1]).all()):
        raise LineasError("its index is not in ascending order, each neuron once.")


def _gate_of(width: int, own: Mapping[str, torch.Tensor]) -> Gate | None:
    given = [kind for kind in GATE_KINDS if kind in own]
    if not given:
        return None
    if len(given) < len(GATE_KINDS):
        raise LineasError(f"there is a {given[0]} without the other of {' and '.join(GATE_KINDS)}.")
    gate = Gate(own["gate_weight"], own["gate_bias"])
    if gate.width != width:
        raise LineasError(f"its gate has {gate.width} neurons, not {width}.")
    return gate


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Say where something is wrong, before what is."""
    try:
        yield
    except LineasError as error:
        raise LineasError(f"{place}: {error}") from None
