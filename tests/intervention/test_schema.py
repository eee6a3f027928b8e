"""Descriptions of artifacts are checked before they are believed or written: one sentence for each fault."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from console import check_refused
from safetensors.torch import load_file, save_file

import lineas
from lineas import AffineMap, Intervention, LineasError
from lineas.files import strict_json
from lineas.intervention.gate import Gate
from lineas.intervention.model_identity import ModelIdentity
from lineas.sites import Site

JSON_FILE, TENSORS = "intervention.json", "intervention.safetensors"
WIDTH = 64
SOURCE, TARGET = ["the dog ran", "a bird sang"], ["the sun was warm", "she smiled"]
FACTS: dict[str, Any] = {"method": {"name": "LinEAS"}, "seed": 0, "cost": [2.0, 1.0], "folds": {"norm": "exact"}}


@pytest.fixture
def calm() -> Intervention:
    """A dense site, a sparse one and the identity."""
    few = torch.zeros(WIDTH)
    few[[3, 9]] = 0.5
    maps = {
        "norm": AffineMap(torch.full((WIDTH,), 1.5), torch.arange(WIDTH) + 1.0),
        "few": AffineMap(1 + few, few),
        "none": AffineMap.identity(WIDTH),
    }
    return Intervention(maps, base=ModelIdentity("someone/tiny", "Llama", "f" * 64), facts=FACTS)


@pytest.fixture
def folder(calm: Intervention, tmp_path: Path) -> Path:
    return calm.save(tmp_path / "calm")


def rewrite(
    folder: Path, json_: Callable[[Any], Any] | None = None, tensors: Callable[[Any], Any] | None = None
) -> None:
    """Change the two files of an artifact in place."""
    if json_ is not None:
        described = json.loads((folder / JSON_FILE).read_text())
        json_(described)
        (folder / JSON_FILE).write_text(json.dumps(described))
    if tensors is not None:
        stored = load_file(folder / TENSORS)
        tensors(stored)
        save_file(stored, folder / TENSORS)


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(LineasError, match=sentence) as error:
        Intervention.load(folder)
    assert "is not a readable intervention: " in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------- the two files belong together


@pytest.mark.parametrize(
    ("json_", "tensors", "sentence"),
    [
        (lambda d: d["sites"][0].update(module="other"), None, "'norm.scale' belongs to none of its 3 sites"),
        (None, lambda t: [t.clear(), t.update(x=torch.ones(1))], "'x' is none of a map or a gate"),
        (None, lambda t: t.update({"norm.mean": torch.ones(WIDTH)}), "'norm.mean' is none of a map"),
        (None, lambda t: t.clear(), "'norm': it touches 0 neurons, and the JSON says 64"),
        (None, lambda t: t.pop("norm.scale") * t.pop("norm.shift"), "'norm': it touches 0 neurons"),
        (lambda d: d["sites"][1].update(touched=3), None, "'few': it touches 2 neurons, and the JSON says 3"),
        (lambda d: d.update(support=0.5), None, "'support' is 0.5, and its sites touch 66 of 192"),
        (lambda d: d["sites"].append(d["sites"][0]), None, "'norm' is listed twice"),
        (lambda d: d["sites"][0].update(folds="scale"), None, "'norm' folds 'scale' and, in the facts, 'exact'"),
        (None, lambda t: t.update({"none.index": torch.tensor([1], dtype=torch.int32)}), "neither a scale nor a shift"),
        (None, lambda t: t.update({"norm.gate_bias": torch.tensor(0.0)}), "gate_bias without the other"),
        (
            None,
            lambda t: t.update({"norm.gate_bias": torch.tensor(0.0), "norm.gate_weight": torch.ones(WIDTH)}),
            "format 1 and 1 gates",
        ),
        (lambda d: d.update(format=2), None, "format 2 and 0 gates"),
    ],
)
def test_what_the_files_say_differently_is_refused(folder: Path, json_, tensors, sentence: str) -> None:
    rewrite(folder, json_, tensors)
    refused(folder, sentence)


INDEX = torch.tensor([3, 9], dtype=torch.int32)


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("few.index", INDEX - 4, "from -1 to 5, and it has 64"),
        ("few.index", INDEX + 55, "from 58 to 64, and it has 64"),
        ("few.index", INDEX * 0 + 3, "ascending order, each neuron once"),
        ("few.index", INDEX.flip(0), "ascending order"),
        ("few.index", INDEX.long(), r"not int32 numbers \[n\]"),
        ("few.index", INDEX.float(), "not int32"),
        ("few.index", INDEX.view(2, 1), "not int32"),
        ("few.index", INDEX[:0], "not int32"),
        ("few.index", INDEX[:1], "2 neurons, not 1"),
        ("few.scale", torch.ones(3), "3 neurons, not 2"),
        ("few.scale", torch.ones(2, 2), r"shape \[2, 2\], not 2"),
        ("norm.scale", torch.ones(WIDTH).to(torch.complex64), "not of complex64"),
        ("norm.scale", torch.ones(WIDTH).long(), "not of int64"),
        ("norm.scale", torch.ones(WIDTH).bool(), "not of bool"),
        ("norm.scale", torch.ones(WIDTH).to(torch.float8_e4m3fn), "not of float8"),
        ("norm.scale", torch.ones(WIDTH, WIDTH), r"shape \[64, 64\]"),
        ("norm.shift", torch.full((WIDTH,), torch.nan), "not finite at 64 of 64 places"),
        ("norm.shift", torch.full((WIDTH,), 1e300, dtype=torch.float64), "not finite at 64 of 64 places once"),
        ("few.shift", torch.tensor([torch.inf, 0.5]), "not finite at 1 of 2"),
    ],
)
def test_tensors_that_are_no_map_are_refused(folder: Path, name: str, tensor: torch.Tensor, sentence: str) -> None:
    rewrite(folder, tensors=lambda stored: stored.update({name: tensor}))
    refused(folder, sentence)


@pytest.mark.parametrize(
    ("weight", "bias", "sentence"),
    [
        (torch.full((WIDTH,), torch.nan), torch.tensor(0.0), "weight is not finite"),
        (torch.ones(WIDTH), torch.tensor(1e300, dtype=torch.float64), "bias is not finite"),
        (torch.ones(WIDTH), torch.zeros(1), "one bias"),
        (torch.ones(WIDTH - 1), torch.tensor(0.0), "63 neurons, not 64"),
        (torch.ones(WIDTH).long(), torch.tensor(0.0), "not of int64"),
    ],
)
def test_gates_are_checked_as_maps_are(calm: Intervention, tmp_path: Path, weight, bias, sentence: str) -> None:
    gated = calm.gated({"norm": Gate(torch.ones(WIDTH), torch.tensor(0.5))}).save(tmp_path / "gated")
    assert Intervention.load(gated).gates.keys() == {"norm"}
    rewrite(gated, tensors=lambda t: t.update({"norm.gate_weight": weight, "norm.gate_bias": bias}))
    refused(gated, sentence)


# ------------------------------------------------------------------------------------------------------- the JSON


def put(value: Any, *keys: str | int) -> Callable[[Any], None]:
    """A change of a description: a value at a place, or nothing there."""

    def change(described: Any) -> None:
        for key in keys[:-1]:
            described = described[key]
        if value is ...:
            del described[keys[-1]]
        else:
            described[keys[-1]] = value

    return change


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, 3, -1, [1]])
def test_a_format_that_is_none_is_refused(folder: Path, value: Any) -> None:
    rewrite(folder, put(value, "format"))
    refused(folder, "format")


SITE = ("sites", 0)


@pytest.mark.parametrize(
    "change",
    [
        *(put(v, "facts") for v in (None, [], "x", 5)),
        *(put(v, "facts", "method") for v in ("x", {}, {"name": 5}, None)),
        *(put(v, "facts", "data") for v in ([1], {"source": 1}, {"source": {"sha256": 1}}, {"source": {"file": 1}})),
        *(put(v, "facts", "calibration") for v in ({}, {"strength": "a"}, {"strength": 1.0, "reached": 1}, None, 1)),
        *(put(v, "facts", "measurements") for v in ([1], {}, [{"strength": "1"}], [{"strength": 1, "kl": None}])),
        *(put(v, "facts", "cost") for v in ("abc", [None], 1.0, ["1"], {})),
        *(put(v, "facts", "folds") for v in ([], {"norm": 1}, None)),
        *(put(v, "facts", "name") for v in (5, None, ["a"])),
        *(put(v, "facts", "seed") for v in ("1", 1.5, None)),
        *(put(v, "facts", "samples") for v in ("1", True, 1.5)),
        *(put(v, "facts", "gate") for v in (1, {"area": "x"})),
        *(put(v, "model") for v in ({}, [], "tiny", 5)),
        *(put(v, "model", "name") for v in (..., 5, None)),
        put(1, "model", "revision"),
        put("x", "model", "other"),
        *(put(v, "sites") for v in (..., [], {}, None, "norm", [1], [[]])),
        *(put(..., *SITE, key) for key in ("module", "output", "neuron_axis", "width", "touched", "folds")),
        *(put(v, *SITE, "module") for v in (5, "", None)),
        *(put(v, *SITE, "output") for v in (-1, "x", 1.5, True, 10**6)),
        *(put(v, *SITE, "neuron_axis") for v in (7, 0, "a", True, 1.0)),
        *(put(v, *SITE, "width") for v in (-5, 0, 10**15, "64", 64.0, True, 10**7)),
        *(put(v, *SITE, "touched") for v in (-1, 65, "64", None)),
        put("x", *SITE, "more"),
        *(put(v, "support") for v in (..., None, "1", 2, -1, True)),
        put(5, "operation"),
    ],
)
def test_a_description_of_another_shape_is_refused(folder: Path, change: Callable[[Any], None]) -> None:
    rewrite(folder, change)
    refused(folder, ".")


def test_what_a_later_version_may_add_is_passed_over(folder: Path, calm: Intervention) -> None:
    rewrite(folder, lambda d: [d.update(note="x"), d["facts"].update(weather={"sun": [1, None]}), d.pop("operation")])
    read = Intervention.load(folder)
    assert read.digest() == calm.digest()
    assert read.facts["weather"] == {"sun": [1, None]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "it is no JSON"),
        ("[]", "not an object"),
        ("", "it is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 500 + "]" * 500, "nested more than 400 deep"),
        ('{"a": ' + "9" * 5000 + "}", "it is no JSON"),
        ('{"a": ' + "9" * 30 + "}", "a is a whole number of more than 64 bits"),
        ('{"a": NaN}', "NaN"),
        ('{"a": [-Infinity]}', "-Infinity"),
        ('{"a": 1e999}', "a is inf"),
        ('{"a": 1, "a": 1}', "the key 'a' twice"),
        ('{"a": "\\ud800"}', "half a surrogate pair"),
        ('{"a\\nb": {"c d": 1e999}}', r"\['a\\nb'\]\['c d'\] is inf"),
        (b'{"a": "\xff"}', "no text in UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
    ],
)
def test_json_that_readers_take_differently_is_refused(folder: Path, text: str | bytes, sentence: str) -> None:
    (folder / JSON_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(folder, sentence)


# -------------------------------------------------------------------------------------------------- files and sizes


@pytest.mark.parametrize("name", [JSON_FILE, TENSORS])
def test_what_is_no_file_or_too_large_is_not_read(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / name
    file.unlink()
    os.mkfifo(file)  # reading it would wait for ever
    refused(folder, "is no file")
    file.unlink()
    file.mkdir()
    refused(folder, "is no file")
    file.rmdir()
    with file.open("wb") as opened:
        opened.truncate(2**32)
    refused(folder, "has 4,294,967,296 bytes, and at most")


def test_sites_without_tensors_cost_nothing(tmp_path: Path) -> None:
    """20 sites of a million neurons from 4 kB, which took 160 MB."""
    maps = {f"layers.{i}": AffineMap.empty(2**20) for i in range(20)}
    place = Intervention(maps).save(tmp_path / "wide")
    assert sum(file.stat().st_size for file in place.iterdir()) < 8000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = Intervention.load(place)
    again = read.at(0.5).then(read).inverse()
    assert again.is_identity()
    assert again.support() == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kB


@pytest.mark.parametrize(("sites", "sentence"), [(300, "more than the 268,435,456"), (65, "filled in by an index")])
def test_sizes_that_no_network_has_are_refused_before_memory_is_taken(
    tmp_path: Path, sites: int, sentence: str
) -> None:
    place = Intervention({"0": AffineMap.empty(2**20)}).save(tmp_path / "wide")
    named = [str(i) for i in range(sites)]
    stored = {f"{i}.scale": torch.tensor([2.0]) for i in named} | {f"{i}.index": INDEX[:1].clone() for i in named}
    rewrite(
        place,
        lambda d: d.update(sites=[{**d["sites"][0], "module": i, "touched": 1} for i in named], support=2**-20),
        lambda t: t.update(stored),
    )
    refused(place, sentence)


# ----------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"x": object()}, "facts.x is an object, which JSON cannot hold"),
        ({"x": [1, {"y": torch.ones(1)}]}, r"facts.x\[1\].y is a Tensor"),
        ({"x": float("inf")}, "facts.x is inf"),
        ({"cost": [1.0, float("nan")]}, r"facts.cost\[1\] must be a finite number, not nan"),
        ({"x": {1: "a"}}, "facts.x has the key 1"),
        ({"x": "\ud800"}, "facts.x has half a surrogate pair"),
        ({"x": 2**64}, "facts.x is a whole number of more than 64 bits"),
        ({"calibration": {}}, "facts.calibration lacks 'strength'"),
        ({"method": "LinEAS"}, "facts.method is 'LinEAS', not an object"),
    ],
)
def test_what_could_not_be_read_again_is_not_saved(
    calm: Intervention, tmp_path: Path, facts: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(LineasError, match=sentence):
        calm.with_facts(**facts).save(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_map_that_was_written_into_is_not_saved(calm: Intervention, tmp_path: Path) -> None:
    calm.maps["norm"].shift[0] = torch.nan
    with pytest.raises(LineasError, match="'norm': its shift is not finite at 1 of 64"):
        calm.save(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_json_with_gaps_is_strict() -> None:
    assert strict_json.dumps({"a": [float("nan"), 1.0], "b": (float("-inf"),)}, None, gaps=True) == (
        '{"a": [null, 1.0], "b": [null]}'
    )


# -------------------------------------------------------------------------------------------------- the constructor


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"maps": {"a": "b"}}, "are AffineMaps by site name, not 'b' by 'a'"),
        ({"maps": {"a": torch.ones(2)}}, "are AffineMaps"),
        ({"maps": {5: AffineMap.identity(2)}}, "by 5"),
        ({"maps": ["a"]}, "are a dict by site name"),
        ({"maps": None}, "are a dict by site name, not None"),
        ({"sites": {"a": "a"}}, "are Sites by site name"),
        ({"sites": {"a": Site("b")}}, "'b' stands under another name, 'a'"),
        ({"base": "tiny"}, "ModelIdentity or None"),
        ({"facts": [1]}, "texts as keys"),
        ({"facts": {1: 2}}, "texts as keys"),
        ({"gates": {"a": 1}}, "are Gates"),
        ({"gates": {"a": Gate(torch.ones(3), torch.tensor(0.0))}}, "no map of its width"),
    ],
)
def test_an_intervention_of_wrong_parts_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LineasError, match=sentence):
        Intervention(**{"maps": {"a": AffineMap.identity(2)}, **given})


def test_an_intervention_keeps_its_own_dicts() -> None:
    maps, facts = {"a": AffineMap.identity(2)}, {"seed": 1}
    one = Intervention(maps, facts=facts)
    maps["b"], facts["seed"] = AffineMap.identity(3), 2
    assert one.maps.keys() == {"a"}
    assert one.facts == {"seed": 1}


@pytest.mark.parametrize("source", [5, None, "", b"calm", True, ["calm"], "x" * 300, "a\0b", "a b/c d"])
def test_what_is_no_name_of_an_intervention_is_refused(source: Any) -> None:
    with pytest.raises(LineasError, match=r"an intervention|a folder") as error:
        Intervention.load(source)
    assert "\0" not in str(error.value)


def test_the_algebra_refuses_other_things(calm: Intervention) -> None:
    for other in (None, 5, "calm", calm.maps["norm"]):
        with pytest.raises(LineasError, match="followed by another one"):
            calm.then(other)  # pyright: ignore[reportArgumentType]
        with pytest.raises(LineasError, match="mix takes a dict"):
            lineas.mix({other: 1.0})  # pyright: ignore[reportArgumentType]
        with pytest.raises(LineasError, match="same sites"):
            calm.distance(other)  # pyright: ignore[reportArgumentType]
    with pytest.raises(LineasError, match="mix takes a dict"):
        lineas.mix([calm])  # pyright: ignore[reportArgumentType]
    for strength in ("0.5", True, None):
        with pytest.raises(LineasError, match="finite number"):
            calm.at(strength)  # pyright: ignore[reportArgumentType]
        with pytest.raises(LineasError, match="finite number"):
            lineas.mix({calm: strength})  # pyright: ignore[reportArgumentType]
    with pytest.raises(LineasError, match=r"at 'norm', the numbers of 64 of 64 neurons exceed float32"):
        calm.at(1e39)
    with pytest.raises(LineasError, match="lacks 'strength'"):
        _ = calm.with_facts(calibration={}).calibrated_strength
    for path in (None, 5, ""):
        with pytest.raises(LineasError, match="saved as a folder"):
            calm.save(path)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "wrong", [(5,), (None,), ("a", -1), ("a", True), ("a", 1.0), ("a", 10**5000), ("a", 0, 2), ("a", 0, "x")]
)
def test_a_site_is_an_output_of_a_named_module(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(LineasError, match=r"a site needs|the output of|lie along"):
        Site(*wrong)


def test_an_output_of_many_digits_is_refused() -> None:
    with pytest.raises(LineasError, match="which no module has"):
        lineas.sites.find_sites(torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1)}), "a:" + "9" * 5000)


# ------------------------------------------------------------------------------------------------- the command line


def test_compose_writes_nothing_that_overflows(calm: Intervention, desk: Path, capsys) -> None:
    calm.save("calm")
    asked = ("compose", "calm", "calm", "--strength", "1e38", "1e38", "--out", "c")
    check_refused(capsys, desk, "the numbers of", *asked)


def test_a_show_of_a_damaged_one_is_a_sentence(folder: Path, capsys) -> None:
    rewrite(folder, put({}, "facts", "calibration"))
    check_refused(capsys, folder, "facts.calibration lacks 'strength'", "show", str(folder))
