"""The format of an artifact: its JSON and its tensors, checked together as docs/reference/artifact.md says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import torch

from lineas.errors import LineasError, shown
from lineas.intervention.facts import as_float, check_facts, check_object, check_text, member
from lineas.intervention.gate import Gate
from lineas.intervention.maps import AffineMap, check_numbers, in_float32
from lineas.intervention.model_identity import ModelIdentity
from lineas.sites import Site

FORMAT, GATED = 1, 2
"""Versions of the format; artifacts with gates have the second, so that a lineas without gates refuses them."""
MOST_NEURONS = 2**20
"""Largest number of neurons of one site; no network has as many."""
MOST_IN_ALL = 2**28
"""Largest number of neurons of all sites together."""
MOST_FILLED = 2**26
"""Largest number of neurons of all sites with an index, since these take more memory than their file."""
BYTES_A_NEURON, BYTES_A_SITE = 32, 4096
"""Largest number of bytes of a neuron (two numbers, an index, a gate, in the widest types) and of a site's names."""
MAP_KINDS, GATE_KINDS = ("scale", "shift"), ("gate_weight", "gate_bias")
SITE_KEYS = {"module", "output", "neuron_axis", "width", "touched", "folds"}


@dataclass(frozen=True)
class Parts:
    """The content of an artifact, and the arguments of an `Intervention`.

    Args:
        maps: maps by site name, in the order of the JSON.
        sites: sites by name.
        base: network that the maps were learned on; None if it is not known.
        facts: further facts.
        gates: gates by site name, for sites that have one.
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
        sites: sites by name, in the order of the JSON.
        widths: number of neurons by site name.
        touched: number of neurons that the map touches, by site name.
        folds: what folds, by site name.
        support: share of all neurons that are touched, 0 to 1.
        base: network that the maps were learned on; None if it is not known.
        facts: further facts.
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
        """The largest size of a file with the tensors of these sites, in bytes."""
        return BYTES_A_SITE * (1 + len(self.sites)) + BYTES_A_NEURON * sum(self.widths.values())


def check(description: Any, tensors: Mapping[str, torch.Tensor]) -> Parts:
    """Return the parts of an artifact, if its two files agree."""
    return filled(outline(description), tensors)


# ---- the JSON


def description(parts: Parts) -> dict[str, Any]:
    """Return the JSON of an artifact without its format and operation, if its facts have the declared types."""
    check_facts(parts.facts)
    folds = parts.facts.get("folds", {})
    touched = {name: int(map_.support().sum()) for name, map_ in parts.maps.items()}
    sites = [
        {
            "module": site.module,
            "output": site.output,
            "neuron_axis": site.axis,
            "width": parts.maps[name].width,
            "touched": touched[name],
            "folds": folds.get(name, "unknown"),
        }
        for name, site in parts.sites.items()
    ]
    return {
        "model": asdict(parts.base) if parts.base else None,
        "sites": sites,
        "support": sum(touched.values()) / sum(map_.width for map_ in parts.maps.values()),
        "facts": parts.facts,
    }


def outline(description: Any) -> Outline:
    """Return the content of `intervention.json`; an error names what is missing, of a wrong type or too large."""
    check_object(description, "intervention.json")
    version = member(description, "format", "intervention.json")
    if type(version) is not int:
        raise LineasError(f"its 'format' is {shown(version)}, not a whole number.")
    if version not in (FORMAT, GATED):
        raise LineasError(f"it has format {version}, and this lineas reads {FORMAT} and {GATED}; upgrade lineas.")
    entries = member(description, "sites", "intervention.json")
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
    support = as_float(member(description, "support", "intervention.json"), "support")
    return Outline(version == GATED, sites, widths, touched, folds, support, _base(description.get("model")), facts)


def _site(entry: Any, place: str) -> Site:
    check_object(entry, place)
    for key in SITE_KEYS:
        member(entry, key, place)
    if unknown := entry.keys() - SITE_KEYS:
        raise LineasError(f"{place} has the key {shown(min(unknown))}, which this format does not know.")
    width, touched = entry["width"], entry["touched"]
    if type(width) is not int or not 1 <= width <= MOST_NEURONS:
        raise LineasError(f"{place}.width is {shown(width)}, not a whole number from 1 to {MOST_NEURONS:,}.")
    if type(touched) is not int or not 0 <= touched <= width:
        raise LineasError(f"{place}.touched is {shown(touched)}, not a whole number from 0 to its width.")
    check_text(entry["folds"], f"{place}.folds")
    if entry["module"] == "":
        raise LineasError(f"{place}.module is '', and a map acts on a module of the network, not on all of it.")
    with _error_at(place):
        return Site(entry["module"], entry["output"], entry["neuron_axis"])


def _base(model: Any) -> ModelIdentity | None:
    if model is None:
        return None
    check_object(model, "model")
    is_needed = {one.name: one.default is MISSING for one in fields(ModelIdentity)}
    for key in (key for key, needed in is_needed.items() if needed):
        member(model, key, "model")
    if unknown := model.keys() - is_needed.keys():
        raise LineasError(f"model has the key {shown(min(unknown))}, which this format does not know.")
    return ModelIdentity(**model)


# ---- the tensors


def filled(outlined: Outline, tensors: Mapping[str, torch.Tensor]) -> Parts:
    """Return the parts of an artifact: its outline, and its tensors by name, such as `SITE.scale`, if they agree."""
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
        with _error_at(f"the site {shown(name)}"):
            maps[name] = _map(outlined.widths[name], own)
            if gate := _gate_of(outlined.widths[name], own):
                gates[name] = gate
            touches = int(maps[name].support().sum())
            if touches != outlined.touched[name]:
                raise LineasError(f"it touches {touches} neurons, and the JSON says {outlined.touched[name]}.")
        fact = outlined.facts.get("folds", {}).get(name, "unknown")
        if outlined.folds[name] != fact:
            raise LineasError(f"{shown(name)} folds {shown(outlined.folds[name])} and, in the facts, {shown(fact)}.")
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
    """Return the map of one site; a site without tensors takes no memory."""
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
        kind = f"a tensor {list(index.shape)} of {index.dtype}" if isinstance(index, torch.Tensor) else shown(index)
        raise LineasError(f"its index is {kind}, not int32 numbers [n] with n from 1 on.")
    if int(index.min()) < 0 or int(index.max()) >= width:
        raise LineasError(f"its index goes from {int(index.min())} to {int(index.max())}, and it has {width} neurons.")
    if not bool((index[1:] > index[:-1]).all()):
        raise LineasError("its index is not in ascending order, each neuron once.")


def _gate_of(width: int, own: Mapping[str, torch.Tensor]) -> Gate | None:
    stored = [kind for kind in GATE_KINDS if kind in own]
    if not stored:
        return None
    if len(stored) < len(GATE_KINDS):
        raise LineasError(f"there is a {stored[0]} without the other of {' and '.join(GATE_KINDS)}.")
    gate = Gate(own["gate_weight"], own["gate_bias"])
    if gate.width != width:
        raise LineasError(f"its gate has {gate.width} neurons, not {width}.")
    return gate


@contextmanager
def _error_at(place: str) -> Iterator[None]:
    """Add a place to the beginning of an error."""
    try:
        yield
    except LineasError as error:
        raise LineasError(f"{place}: {error}") from None
