"""Interventions: algebra over sites, the folder on disk, and the refusal of networks they do not belong to."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lineas
from lineas import AffineMap, Intervention, LineasError
from lineas.intervention import artifact
from lineas.intervention.model_identity import ModelIdentity, fingerprint
from lineas.sites import Site


class Tiny(nn.Module):
    """Two norms and a linear, with names to hang maps on."""

    def __init__(self, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.LayerNorm(width)
        self.second = nn.LayerNorm(width)
        nn.init.normal_(self.first.weight)


def random_map(width: int = 6, seed: int = 0, touched: int | None = None) -> AffineMap:
    generator = torch.Generator().manual_seed(seed)
    scale, shift = 1 + torch.randn(width, generator=generator), torch.randn(width, generator=generator)
    if touched is not None:
        scale[touched:], shift[touched:] = 1.0, 0.0
    return AffineMap(scale, shift)


@pytest.fixture
def rude() -> Intervention:
    return Intervention(
        {"first": random_map(seed=1), "second": random_map(seed=2)}, base=ModelIdentity.of(Tiny(), "tiny")
    )


@pytest.fixture
def brief() -> Intervention:
    return Intervention({"second": random_map(seed=3)}, base=ModelIdentity.of(Tiny(), "tiny"))


def same(a: Intervention, b: Intervention) -> bool:
    return a.maps.keys() == b.maps.keys() and all(
        torch.equal(a.maps[k].scale, b.maps[k].scale) and torch.equal(a.maps[k].shift, b.maps[k].shift) for k in a.maps
    )


def test_at_inverse_and_support_act_on_every_site(rude: Intervention) -> None:
    half = rude.at(0.5)
    for name, map_ in rude.maps.items():
        assert torch.equal(half.maps[name].scale, map_.at(0.5).scale)
        torch.testing.assert_close(rude.then(rude.inverse()).maps[name].scale, torch.ones(6))
    assert rude.support() == 1.0
    assert rude.at(0.0).is_identity()
    assert rude.at(0.0).support() == 0.0


def test_then_keeps_a_site_that_only_one_has(rude: Intervention, brief: Intervention) -> None:
    both = rude.then(brief)
    assert torch.equal(both.maps["first"].scale, rude.maps["first"].scale)
    expected = rude.maps["second"].then(brief.maps["second"])
    assert torch.equal(both.maps["second"].shift, expected.shift)
    assert both.base == rude.base


def test_mix_weighs_and_order_plays_no_part(rude: Intervention, brief: Intervention) -> None:
    mixed, turned = lineas.mix({rude: 0.6, brief: 0.4}), lineas.mix({brief: 0.4, rude: 0.6})
    torch.testing.assert_close(mixed.maps["second"].scale, turned.maps["second"].scale)
    torch.testing.assert_close(mixed.maps["first"].shift, 0.6 * rude.maps["first"].shift)


def test_interventions_of_different_networks_do_not_combine(rude: Intervention) -> None:
    other = Intervention({"first": random_map()}, base=ModelIdentity.of(Tiny(seed=5), "other"))
    with pytest.raises(LineasError, match="tiny and other"):
        rude.then(other)


def test_sites_that_share_a_map_or_its_memory_are_saved(tmp_path: Path) -> None:
    both = torch.arange(12.0).view(2, 6)
    one = AffineMap(both[0], both[1])
    Intervention({"a": one, "b": one, "c": AffineMap(both[1], both[0])}).save(tmp_path / "shared")
    read = Intervention.load(tmp_path / "shared").maps
    assert torch.equal(read["a"].shift, read["b"].shift)
    assert torch.equal(read["c"].scale, both[1])


def test_save_and_load_is_bit_exact_with_all_facts(rude: Intervention, tmp_path: Path) -> None:
    told = rude.with_facts(seed=3, method={"name": "LinEAS", "gamma": 0.01})
    told.save(tmp_path / "rude")
    loaded = Intervention.load(tmp_path / "rude")
    assert same(loaded, rude)
    assert (loaded.base, loaded.sites, loaded.facts) == (told.base, told.sites, told.facts)


def test_other_outputs_and_axes_survive_the_folder(tmp_path: Path) -> None:
    site = Site("conv", output=1, axis=1)
    Intervention({site.name: random_map()}, {site.name: site}).save(tmp_path / "x")
    assert Intervention.load(tmp_path / "x").sites == {"conv:1": site}


def test_a_sparse_map_stores_only_what_it_touches_and_loads_bit_exact(tmp_path: Path) -> None:
    sparse = Intervention({"first": random_map(100, touched=7), "second": AffineMap.identity(100)})
    sparse.save(tmp_path / "sparse")
    tensors = load_file(tmp_path / "sparse" / "intervention.safetensors")
    assert {k: len(v) for k, v in tensors.items()} == {"first.scale": 7, "first.shift": 7, "first.index": 7}
    assert tensors["first.index"].dtype == torch.int32
    assert same(Intervention.load(tmp_path / "sparse"), sparse)


def test_shifts_alone_store_no_scale_and_load_bit_exact(tmp_path: Path) -> None:
    moved = Intervention({"first": AffineMap(torch.ones(100), random_map(100, touched=7).shift)})
    moved.save(tmp_path / "moved")
    tensors = load_file(tmp_path / "moved" / "intervention.safetensors")
    assert {k: len(v) for k, v in tensors.items()} == {"first.shift": 7, "first.index": 7}
    assert same(Intervention.load(tmp_path / "moved"), moved)


def test_an_index_beyond_the_width_is_refused(tmp_path: Path) -> None:
    Intervention({"first": random_map(100, touched=7)}).save(tmp_path / "x")
    description = tmp_path / "x" / "intervention.json"
    description.write_text(description.read_text().replace('"width": 100', '"width": 5'))
    with pytest.raises(LineasError, match="not a readable intervention"):
        Intervention.load(tmp_path / "x")


def test_the_json_states_operation_axis_width_and_network(rude: Intervention, tmp_path: Path) -> None:
    rude.save(tmp_path / "rude")
    told = json.loads((tmp_path / "rude" / "intervention.json").read_text())
    assert told["format"] == 1
    assert "scale" in told["operation"]
    assert told["sites"][0] == {
        "module": "first", "output": 0, "neuron_axis": -1, "width": 6, "touched": 6, "folds": "unknown",
    }  # fmt: skip
    assert told["model"]["fingerprint"] == fingerprint(Tiny())
    assert "tiny" in (tmp_path / "rude" / "README.md").read_text()


def test_an_existing_folder_is_kept_unless_asked(rude: Intervention, brief: Intervention, tmp_path: Path) -> None:
    rude.save(tmp_path / "a")
    with pytest.raises(LineasError, match="exists already"):
        brief.save(tmp_path / "a")
    assert same(Intervention.load(tmp_path / "a"), rude)
    brief.save(tmp_path / "a", overwrite=True)
    assert same(Intervention.load(tmp_path / "a"), brief)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("ten years")
    with pytest.raises(LineasError, match="is not an intervention"):
        brief.save(tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_other_files_in_the_folder_stay_and_links_go_on_leading_to_it(rude: Intervention, tmp_path: Path) -> None:
    place, link = tmp_path / "calm", tmp_path / "link"
    rude.save(place)
    (place / "notes.txt").write_text("what I saw")
    link.symlink_to(place)
    rude.at(0.5).save(link, overwrite=True)
    assert link.is_symlink()
    assert (place / "notes.txt").read_text() == "what I saw"
    assert Intervention.load(place).digest() == rude.at(0.5).digest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calm", "link"]


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_is_finite(rude: Intervention, brief: Intervention, strength: float) -> None:
    with pytest.raises(LineasError, match="must be a finite number"):
        rude.at(strength)
    with pytest.raises(LineasError, match="must be a finite number"):
        lineas.mix({rude: 1.0, brief: strength})


def test_a_failed_write_leaves_nothing_behind(
    rude: Intervention, brief: Intervention, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rude.save(tmp_path / "kept")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact, "save_file", full_disk)
    for name in ("new", "kept"):
        with pytest.raises(OSError, match="No space left"):
            brief.save(tmp_path / name, overwrite=True)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert same(Intervention.load(tmp_path / "kept"), rude)


def test_no_pickle_is_read(tmp_path: Path, rude: Intervention) -> None:
    rude.save(tmp_path / "x")
    (tmp_path / "x" / "intervention.safetensors").write_bytes(pickle.dumps({"first.scale": torch.ones(6)}))
    with pytest.raises(LineasError, match="not a readable intervention"):
        Intervention.load(tmp_path / "x")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: (d / "intervention.json").write_text("{"), "not a readable intervention"),
        (lambda d: (d / "intervention.json").unlink(), "holds no intervention.json"),
        (lambda d: (d / "intervention.safetensors").unlink(), "not a readable intervention"),
        (
            lambda d: (d / "intervention.json").write_text(
                (d / "intervention.json").read_text().replace('"format": 1', '"format": 99')
            ),
            "format 99",
        ),
        (
            lambda d: (d / "intervention.json").write_text(
                (d / "intervention.json").read_text().replace('"width": 6', '"width": 7')
            ),
            "6 neurons, not 7",
        ),
    ],
)
def test_a_damaged_folder_is_named_in_one_sentence(rude: Intervention, tmp_path: Path, damage, sentence: str) -> None:
    rude.save(tmp_path / "x")
    damage(tmp_path / "x")
    with pytest.raises(LineasError, match=sentence):
        Intervention.load(tmp_path / "x")


def test_a_name_that_is_nowhere_says_where_it_was_looked_for() -> None:
    with pytest.raises(LineasError, match="not a folder, not one that ships"):
        Intervention.load("nowhere")
    with pytest.raises(LineasError, match="not on the hub"):
        Intervention.load("someone/nothing-of-the-kind")


def test_the_network_it_was_learned_on_is_recognised_in_every_dtype(rude: Intervention) -> None:
    rude.check_fits(Tiny())
    rude.check_fits(Tiny().to(torch.bfloat16))


def test_what_differs_is_said_and_force_overrides_what_it_can(rude: Intervention) -> None:
    with pytest.raises(LineasError, match="other norm weights"):
        rude.check_fits(Tiny(seed=9))
    rude.check_fits(Tiny(seed=9), other_model=True)
    with pytest.raises(LineasError, match="6 neurons at 'first', this network has 8"):
        rude.check_fits(Tiny(width=8), other_model=True)
    with pytest.raises(LineasError, match=r"'first' and 1 other modules that Linear does not have"):
        rude.check_fits(nn.Linear(2, 2), other_model=True)
    renamed = type("Other", (Tiny,), {})()
    with pytest.raises(LineasError, match=r"learned on tiny \(Tiny\), not on a Other"):
        rude.check_fits(renamed)


def test_an_intervention_needs_maps_and_matching_sites() -> None:
    with pytest.raises(LineasError, match="at least one map"):
        Intervention({})
    with pytest.raises(LineasError, match="exactly one site"):
        Intervention({"a": random_map()}, {"b": Site("b")})


def test_sharing_uploads_the_three_files(rude: Intervention, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, list[str]] = {}

    class Hub:
        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> str:
            return f"hub/{repo_id}"

        def upload_folder(self, repo_id: str, folder_path: str) -> None:
            uploaded[repo_id] = sorted(p.name for p in Path(folder_path).iterdir())

    monkeypatch.setattr(artifact, "HfApi", Hub)
    assert rude.push_to_hub("me/rude") == "hub/me/rude"
    assert uploaded == {"me/rude": ["README.md", "intervention.json", "intervention.safetensors"]}
