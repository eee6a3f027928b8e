"""Gates: each token's share of a map, learned from source against control tokens, saved, honoured by live steering."""

from __future__ import annotations

import json
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from console import LEARN, check_refused, run
from families import OTHER_PROMPTS, PROMPTS, outputs
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

import lineas
from lineas import AffineMap, Intervention, LineasError, MeanAcT, TextModel
from lineas.folding.control_vector import ControlVector
from lineas.intervention.gate import Gate
from lineas.learning import gate
from lineas.learning.gating import tokens

IDS = torch.tensor([[1, 403, 407, 500], [1, 260, 300, 310]])


def opened(d: int, bias: float) -> Gate:
    return Gate(torch.zeros(d), torch.tensor(bias))


@pytest.fixture
def calm(stories: TextModel) -> Intervention:
    return lineas.learn(stories, PROMPTS, OTHER_PROMPTS, MeanAcT(), progress=False)


def logits(model: TextModel) -> torch.Tensor:
    with torch.no_grad():
        return model.network(IDS).logits


def everywhere(intervention: Intervention, bias: float) -> Intervention:
    return intervention.gated({name: opened(m.width, bias) for name, m in intervention.maps.items()})


# --------------------------------------------------------------------------------------------------- live steering


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_a_token_moves_by_its_share_of_the_map(strength: float, axis: int) -> None:
    """By hand on a module of its own, neurons last and, as in images, second."""
    network = nn.Sequential(nn.Identity())
    z = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    z = z if axis == -1 else z.transpose(1, 2)
    map_, g = AffineMap(torch.rand(4) + 0.5, torch.randn(4)), Gate(torch.randn(4), torch.tensor(0.3))
    site = lineas.sites.Site("0", axis=axis)
    gated = Intervention({"0": map_}, {"0": site}, gates={"0": g})
    with lineas.steer(network, gated, strength):
        seen = network(z).movedim(axis, -1)
    before = z.movedim(axis, -1)
    share = torch.sigmoid(before @ g.weight + g.bias).unsqueeze(-1)
    expected = before + share * strength * ((map_.scale - 1) * before + map_.shift)
    torch.testing.assert_close(seen, expected)


def test_an_open_gate_is_no_gate_and_a_closed_one_no_steering(stories: TextModel, calm: Intervention) -> None:
    plain = logits(stories)
    with lineas.steer(stories, calm):
        steered = logits(stories)
    with lineas.steer(stories, everywhere(calm, 50.0)):
        torch.testing.assert_close(logits(stories), steered)
    with lineas.steer(stories, everywhere(calm, -200.0)):
        assert torch.equal(logits(stories), plain)
    with lineas.steer(stories, everywhere(calm, 0.0), 0.0):
        assert torch.equal(logits(stories), plain)
    with lineas.steer(stories, everywhere(calm, 0.0)):  # half of every change is the map at half strength
        half = logits(stories)
    with lineas.steer(stories, calm, 0.5):
        torch.testing.assert_close(logits(stories), half)


def test_a_strength_a_row_and_tokens_are_kept_to(stories: TextModel, calm: Intervention) -> None:
    gated = everywhere(calm, 0.0)
    with lineas.steer(stories, gated, torch.tensor([0.0, 1.0])):
        both = logits(stories)
    assert torch.equal(both[0], logits(stories)[0])
    with lineas.steer(stories, gated):
        torch.testing.assert_close(both[1], logits(stories)[1])
    with lineas.steer(stories, gated, tokens="generated") as live:
        live.prompt_length = 2
        later = logits(stories)
    assert torch.equal(later[:, :2], logits(stories)[:, :2])
    assert not torch.allclose(later[:, 2:], logits(stories)[:, 2:])


def test_half_precision_stays_half(stories: TextModel) -> None:
    map_ = AffineMap(torch.ones(4), torch.ones(4))
    with lineas.steer(network := nn.Sequential(nn.Identity()), Intervention({"0": map_}, gates={"0": opened(4, 0.0)})):
        out = network(torch.zeros(1, 2, 4, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, torch.full_like(out, 0.5))


def test_double_precision_stays_double() -> None:
    """A row that has none of it keeps every bit."""
    z = torch.rand(2, 5, 4, dtype=torch.float64)
    map_, g = AffineMap(torch.rand(4) + 0.5, torch.randn(4)), Gate(torch.randn(4), torch.tensor(0.3))
    network = nn.Sequential(nn.Identity())
    gated = Intervention({"0": map_}, gates={"0": g})
    with lineas.steer(network, gated, torch.tensor([0.0, 1.0])):
        out = network(z)
    assert torch.equal(out[0], z[0])
    share = torch.sigmoid(z[1] @ g.weight.double() + g.bias.double()).unsqueeze(-1)
    torch.testing.assert_close(out[1], z[1] + share * ((map_.scale.double() - 1) * z[1] + map_.shift.double()))


# ------------------------------------------------------------------------------------------------------- learning


def test_of_many_tokens_some_are_taken_and_never_many_more_held(
    stories: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = stories.sites()[:2]
    whole = tokens(stories, PROMPTS * 30, sites)
    monkeypatch.setattr("lineas.learning.gating.MOST", 20)
    monkeypatch.setattr("lineas.learning.gating.SOME_TOKENS", 30)  # parts of a few prompts
    few = tokens(stories, PROMPTS * 30, sites, seed=3)
    for name, z in few.items():
        assert len(z) == 20 < len(whole[name])
        near = torch.cdist(z, whole[name]).min(dim=1).values
        assert float(near.max()) < 1e-3 * float(z.norm(dim=1).mean())
    again = tokens(stories, PROMPTS * 30, sites, seed=3)
    assert all(torch.equal(z, again[name]) for name, z in few.items())
    other = tokens(stories, PROMPTS * 30, sites, seed=4)
    assert not any(torch.equal(z, other[name]) for name, z in few.items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_gate_is_a_logistic_regression_on_principal_components(family: str) -> None:
    """The gate is that of scikit-learn's own pipeline, on tokens gathered prompt by prompt."""
    model = families.model(family)
    learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, MeanAcT(), progress=False)
    gated = gate(model, learned, PROMPTS, OTHER_PROMPTS, components=3)
    for name, site in learned.sites.items():
        sides = [torch.cat(outputs(model, prompts, site)).double().numpy() for prompts in (PROMPTS, OTHER_PROMPTS)]
        z, labels = np.concatenate(sides), [1] * len(sides[0]) + [0] * len(sides[1])
        pca = PCA(3).fit(z)
        scaler = StandardScaler().fit(pca.transform(z))
        scores = scaler.transform(pca.transform(z))
        expected = LogisticRegression(class_weight="balanced", max_iter=1000).fit(scores, labels).predict_proba(scores)
        shares = gated.gates[name](torch.from_numpy(z).float()).squeeze(-1)
        np.testing.assert_allclose(shares.numpy(), expected[:, 1], atol=2e-3)
        told = gated.facts["gate"]["sites"][name]
        assert told["source"] == pytest.approx(float(shares[: len(sides[0])].mean()), abs=2e-3)
        assert told["source"] > told["control"]
        assert told["area"] > 0.5


def test_what_cannot_be_gated_is_refused(stories: TextModel, calm: Intervention) -> None:
    with pytest.raises(LineasError, match="the control needs a list of at least one prompt"):
        gate(stories, calm, PROMPTS, [])
    with pytest.raises(LineasError, match="components must be at least 1, not 0"):
        gate(stories, calm, PROMPTS, OTHER_PROMPTS, components=0)
    nothing = Intervention({name: AffineMap.identity(m.width) for name, m in calm.maps.items()})
    with pytest.raises(LineasError, match="changes nothing, so there is nothing to gate"):
        gate(stories, nothing, PROMPTS, OTHER_PROMPTS)
    with pytest.raises(LineasError, match="belongs to no map of its width"):
        calm.gated({next(iter(calm.maps)): opened(3, 0.0)})


# -------------------------------------------------------------------------------------------------- what it is part of


def test_what_was_measured_without_gates_is_not_said_of_the_gated_one(calm: Intervention) -> None:
    known = calm.with_facts(calibration={"strength": 0.5}, measurements=[{"strength": 0.5}], seed=3)
    gated = known.gated({name: Gate(torch.zeros(map_.width), torch.tensor(0.0)) for name, map_ in calm.maps.items()})
    assert gated.facts["seed"] == 3
    assert not {"calibration", "measurements"} & gated.facts.keys()


def test_nothing_is_learned_from_a_gated_one(stories: TextModel, calm: Intervention) -> None:
    gated = calm.gated({name: Gate(torch.zeros(map_.width), torch.tensor(0.0)) for name, map_ in calm.maps.items()})
    sides = (["A dog ran.", "He cried."], ["A bird sang.", "She smiled."])
    with pytest.raises(LineasError, match="cannot be a start"):
        lineas.learn(stories, *sides, lineas.LinEAS(steps=1), start=gated)
    with pytest.raises(LineasError, match="cannot be learned on top of"):
        lineas.learn(stories, *sides, lineas.LinEAS(steps=1), on=gated)


def test_gates_are_saved_and_loaded(stories: TextModel, calm: Intervention, tmp_path: Path) -> None:
    gated = gate(stories, calm, PROMPTS, OTHER_PROMPTS)
    gated.save(tmp_path / "gated")
    calm.save(tmp_path / "calm")
    again = Intervention.load(tmp_path / "gated")
    assert again.gates.keys() == gated.gates.keys() == calm.maps.keys()
    assert again.digest() == gated.digest() != calm.digest()
    with lineas.steer(stories, gated):
        steered = logits(stories)
    with lineas.steer(stories, again.with_facts(note="kept").at(1.0)):
        torch.testing.assert_close(logits(stories), steered, rtol=0, atol=1e-6)
    described = [json.loads((tmp_path / name / "intervention.json").read_text()) for name in ("calm", "gated")]
    assert [one["format"] for one in described] == [1, 2]  # a lineas that knows no gates refuses the second
    assert "sigmoid" in described[1]["operation"]
    assert again.gated({}).digest() == calm.digest()


@pytest.mark.parametrize(
    ("what", "do"),
    [
        ("combined", lambda model, one: one.then(one)),
        ("combined", lambda model, one: lineas.mix({one: 0.5})),
        ("combined", lambda model, one: lineas.steer(model, [one, one])),
        ("inverted", lambda model, one: one.inverse()),
        ("folded", lambda model, one: lineas.fold(model, one)),
        ("exported", lambda model, one: ControlVector.of(one)),
    ],
)
def test_what_only_affine_maps_allow_is_refused(stories: TextModel, calm: Intervention, what: str, do) -> None:
    with pytest.raises(LineasError, match=f"a gated intervention cannot be {what}"):
        do(stories, everywhere(calm, 0.0))


def test_the_command_line_gates_what_it_learned_from(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN, "--dtype", "float32")
    command = ("gate", "--intervention", "calm", "--control", "target.txt", "--out", "gated", "--dtype", "float32")
    code, out, _ = run(capsys, *command)
    assert code == 0
    assert "gated gated: 4 sites" in out
    assert len(Intervention.load("gated").gates) == 4
    assert "gated at 4 sites" in run(capsys, "show", "gated")[1]
    code, *_ = run(capsys, "generate", "model", "--intervention", "gated", "--prompt", "Tom", "--dtype", "float32")
    assert code == 0
    check_refused(capsys, desk, "cannot be folded", "fold", "model", "--intervention", "gated", "--out", "folded")
    check_refused(capsys, desk, "cannot be combined", "compose", "gated", "calm", "--out", "both")
    (desk / "source.txt").write_text("Something else\n")
    check_refused(capsys, desk, "source.txt is no longer what this intervention was learned from", *command, "--force")
    (desk / "source.txt").unlink()
    check_refused(capsys, desk, "name the prompts that need steering with --source", *command, "--force")
    Intervention(Intervention.load("calm").maps).save("bare")
    bare = ("gate", "--intervention", "bare", "--control", "target.txt", "--out", "x", "model")
    check_refused(capsys, desk, "does not say which file it was learned from", *bare)
    code, *_ = run(capsys, *command, "--force", "--source", "target.txt")
    assert code == 0
