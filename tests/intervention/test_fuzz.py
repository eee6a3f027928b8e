"""Artifacts that are damaged at random: each is refused in a sentence, or means the same after it is saved again.

300 examples in the suite; 10,000 with `LINEAS_HYPOTHESIS=night`.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file

from lineas import AffineMap, Intervention, LineasError
from lineas.cli.show import draw, site_rows
from lineas.intervention.gate import Gate
from lineas.intervention.model_card import model_card
from lineas.intervention.model_identity import ModelIdentity
from lineas.reporting import Content, page
from lineas.reporting.neurons import largest_neurons
from lineas.sites import Site

JSON_FILE, TENSORS = "intervention.json", "intervention.safetensors"
a_part = settings(max_examples=settings().max_examples * 3 // 4)
FACTS: dict[str, Any] = {
    "name": "calm",
    "method": {"name": "LinEAS", "gamma": 0.01, "batch_size": None},
    "seed": 3,
    "samples": 8,
    "pooling": "max",
    "data": {"source": {"file": "rude.txt", "count": 8, "sha256": "ab" * 32}, "target": {"count": 8}},
    "cost": [3.0, 2.5, 1.25],
    "folds": {"layers.0.norm": "exact"},
    "calibration": {"strength": 0.5, "reached": True, "effect": "toxic-50%"},
    "measurements": [{"strength": 0.0, "toxic": 0.5, "perplexity": 9.0}, {"strength": 1.0, "toxic": 0.25}],
    "gate": {"area": 0.9},
}


def some(width: int, touched: int) -> AffineMap:
    scale, shift = torch.ones(width), torch.zeros(width)
    scale[:touched], shift[:touched] = torch.rand(touched) + 1.5, torch.rand(touched) - 2
    return AffineMap(scale, shift)


def examples() -> dict[str, Intervention]:
    base = ModelIdentity("someone/tiny", "LlamaForCausalLM", "f" * 64)
    maps = {"layers.0.norm": some(6, 6), "layers.1.norm": some(9, 2), "layers.2.norm": AffineMap.identity(4)}
    gates = {"layers.0.norm": Gate(torch.rand(6), torch.tensor(0.5))}
    site = Site("conv", output=1, axis=1)
    return {
        "learned": Intervention(maps, base=base, facts=FACTS),
        "gated": Intervention(maps, base=base, facts=FACTS, gates=gates),
        "bare": Intervention({site.name: some(5, 1)}, {site.name: site}),
    }


Files = dict[str, tuple[Any, dict[str, torch.Tensor], dict[str, bytes]]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Files]:
    """A folder to write into, and by name the parts of artifacts that are whole."""
    place, parts = tmp_path_factory.mktemp("fuzz"), {}
    for name, one in examples().items():
        folder = one.save(place / name)
        files = {file: (folder / file).read_bytes() for file in (JSON_FILE, TENSORS)}
        parts[name] = json.loads(files[JSON_FILE]), load_file(folder / TENSORS), files
    (place / "damaged").mkdir()
    return place, parts


NAMES = st.sampled_from(["learned", "gated", "bare"])


def same(one: Intervention, other: Intervention) -> bool:
    return one.digest() == other.digest() and (one.sites, one.base, one.facts, one.gates.keys()) == (
        other.sites, other.base, other.facts, other.gates.keys(),
    )  # fmt: skip


def attempt(action: Callable[[], Any]) -> tuple[Any, str]:
    """Return what an action gives, or the sentence that refuses it; any other error is a failure."""
    try:
        return action(), ""
    except LineasError as error:
        return None, str(error)


def judge(place: Path) -> bool:
    """Return whether a folder is read; then all that needs no model has to work with it."""
    read, sentence = attempt(lambda: Intervention.load(place / "damaged"))
    if read is None:
        assert "not a readable intervention: " in sentence
        assert "\n" not in sentence
        return False
    read.save(place / "again", overwrite=True)
    assert same(Intervention.load(place / "again"), read)
    assert 0 <= read.support() <= 1
    assert 0 <= read.at(0.5).support() <= 1
    if "calibration" in read.facts:
        assert isinstance(read.calibrated_strength, float)
    draw(Console(file=io.StringIO(), width=120), read, site_rows(read))
    assert model_card(json.loads((place / "again" / JSON_FILE).read_text()))
    curves = {"it": read.facts["measurements"]} if read.facts.get("measurements") else {}
    assert page(Content({"it": read}, {"it": largest_neurons(read, 3)}, curves))
    return True


# ---------------------------------------------------------------------------------------------------------- bytes


@a_part
@given(st.data())
def test_damaged_bytes(written: tuple[Path, Files], data: st.DataObject) -> None:
    place, parts = written
    files = dict(parts[data.draw(NAMES)][2])
    file = data.draw(st.sampled_from([JSON_FILE, TENSORS]))
    content = files[file]
    where = data.draw(st.integers(0, len(content)))
    until = data.draw(st.integers(where, min(len(content), where + 8)) | st.just(len(content)))
    files[file] = content[:where] + data.draw(st.binary(max_size=8)) + content[until:]
    for name, bytes_ in files.items():
        (place / "damaged" / name).write_bytes(bytes_)
    event("read" if judge(place) else "refused")


# ----------------------------------------------------------------------------------------------------------- JSON

numbers = st.one_of(
    st.integers(-3, 12), st.integers(), st.floats(), st.sampled_from([2**20 + 1, 10**15, 2**64, 10**40, 1e300, -1])
)
texts = st.text(max_size=8) | st.sampled_from(
    ["strength", "\ud800", "\x1b[2J", "</script>", "a.b", "layers.1.norm", ""]
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every dict or list in a JSON value, with each of its keys."""
    found = [(value, key) for key in (value if isinstance(value, dict) else range(len(value)))]
    return found + [inner for one, key in found[:] if isinstance(one[key], (dict, list)) for inner in places(one[key])]


@a_part
@given(st.data())
def test_damaged_json(written: tuple[Path, Files], data: st.DataObject) -> None:
    place, parts = written
    description, _, files = parts[data.draw(NAMES)]
    description = copy.deepcopy(description)
    for _ in range(data.draw(st.integers(1, 2))):
        spots = places(description)
        inside, key = spots[data.draw(st.integers(0, len(spots) - 1))]
        match data.draw(st.sampled_from(["replace", "remove", "add", "swap"])):
            case "replace":
                inside[key] = data.draw(anything)
            case "remove":
                del inside[key]
            case "add" if isinstance(inside, dict):
                inside[data.draw(texts)] = data.draw(anything)
            case "add":
                inside.append(data.draw(anything | st.just(inside[key])))
            case "swap":
                other, at = spots[data.draw(st.integers(0, len(spots) - 1))]
                inside[key] = copy.deepcopy(other[at])
    (place / "damaged" / JSON_FILE).write_text(json.dumps(description))
    (place / "damaged" / TENSORS).write_bytes(files[TENSORS])
    event("read" if judge(place) else "refused")


# -------------------------------------------------------------------------------------------------------- tensors

TYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.int8, torch.bool,
    torch.complex64, torch.float8_e4m3fn, torch.uint8,
]  # fmt: skip
VALUES = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 8.0, -1.0, 0.5, 1e-45, 1e-6, 1e38, 3e38, -3e38, 1e300, torch.inf, torch.nan]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.sampled_from([[], [0], [1], [2], [4], [5], [6], [9], [9, 1], [2, 3], [1, 6]]))
    kind = draw(st.sampled_from(TYPES[:1] * 4 + TYPES[4:5] * 2 + TYPES))
    count = torch.Size(shape).numel()
    rising = st.just([*map(float, range(count))])
    drawn = draw(st.lists(st.sampled_from(VALUES), min_size=count, max_size=count) | rising)
    values = torch.tensor(drawn, dtype=torch.float64)
    if not kind.is_floating_point:
        values = values.nan_to_num(2.0, 2.0, 2.0).clamp(-1, 100)
    return values.to(kind).view(shape)


@a_part
@given(st.data())
def test_damaged_tensors(written: tuple[Path, Files], data: st.DataObject) -> None:
    place, parts = written
    description, whole, _ = parts[data.draw(NAMES)]
    description, whole = copy.deepcopy(description), dict(whole)
    sites = [f"{s['module']}:{s['output']}" if s["output"] else s["module"] for s in description["sites"]]
    for _ in range(data.draw(st.integers(1, 2))):
        kind = data.draw(st.sampled_from(["scale", "shift", "index", "gate_weight", "gate_bias", "mean"]))
        name = data.draw(st.sampled_from([*sites, "layers.7.norm", ""]))
        own = data.draw(st.sampled_from([*whole, f"{name}.{kind}"]))
        if data.draw(st.booleans()) and own in whole:
            tensor = whole.pop(own)
            if data.draw(st.booleans()):
                whole[own] = tensor.double() * data.draw(st.sampled_from([1.0, -1.0, 1e30, 1e300, 1e-30]))
        else:
            whole[own] = data.draw(tensors())
    if data.draw(st.booleans()):  # the JSON follows, where it can
        follow(description, whole, sites)
    (place / "damaged" / JSON_FILE).write_text(json.dumps(description))
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, place / "damaged" / TENSORS)
    event("read" if judge(place) else "refused")


def follow(description: Any, whole: dict[str, torch.Tensor], sites: list[str]) -> None:
    """Let the JSON say what the tensors touch, as far as they tell."""
    for entry, name in zip(description["sites"], sites):
        moved = [
            (whole[f"{name}.{kind}"].flatten().float() - identity).abs() > 1e-5
            for kind, identity in (("scale", 1), ("shift", 0))
            if f"{name}.{kind}" in whole and not whole[f"{name}.{kind}"].is_complex()
        ]
        if len({len(one) for one in moved}) == 1:
            entry["touched"] = int(torch.stack(moved).any(0).sum())
        elif not moved:
            entry["touched"] = 0
    total = sum(entry["width"] for entry in description["sites"])
    description["support"] = sum(entry["touched"] for entry in description["sites"]) / total


# ----------------------------------------------------------------------------------------------------- what is saved

odd = st.one_of(anything, st.just(b"bytes"), st.just({1: 2}), st.just(object()), st.tuples(st.integers(0, 3)))


@a_part
@given(st.lists(st.sampled_from(VALUES[:12]), min_size=4, max_size=8), st.data())
def test_what_is_saved_can_be_read(written: tuple[Path, Files], values: list[float], data: st.DataObject) -> None:
    place, _ = written
    facts = {**FACTS, **data.draw(st.dictionaries(st.sampled_from([*FACTS, "notes"]), odd, max_size=2))}
    numbers_ = torch.tensor(values)
    one = Intervention({"a": AffineMap(numbers_, numbers_.flip(0)), "b": AffineMap.identity(3)}, facts=facts)
    saved, sentence = attempt(lambda: one.save(place / "again", overwrite=True))
    if saved is None:
        assert facts != FACTS  # plain ones are never refused
        assert "facts" in sentence or "more than 64 bits" in sentence or "nested" in sentence
        return
    read = Intervention.load(place / "again")
    assert read.digest() == one.digest()
    assert json.dumps(read.facts) == json.dumps(facts)
