"""Networks with recurrent layers, alone or beside attention: learned, steered, composed and judged like any other."""

from __future__ import annotations

from pathlib import Path

import families
import pytest
import torch

import lineas
from lineas.evaluation import Plan, Steered, Untouched, evaluate
from lineas.evaluation.variants import Adapted
from lineas.learning import Method
from lineas.learning.lora import LoRA

METHODS = [lineas.LinAcT(), lineas.MeanAcT(), lineas.CAA(), lineas.ITIc()]


@pytest.fixture(scope="module", params=families.RECURRENT)
def model(request: pytest.FixtureRequest) -> lineas.TextModel:
    return families.model(request.param)


@pytest.fixture(scope="module")
def learned(model: lineas.TextModel) -> lineas.Intervention:
    with pytest.warns(UserWarning, match="padded instead of packed.*not all of its layers are causal attention"):
        return lineas.learn(model, families.PROMPTS, families.OTHER_PROMPTS, lineas.LinEAS(steps=8), progress=False)


def continued(model: lineas.TextModel, prompts: list[str]) -> list[str]:
    return model.generate(prompts, temperature=0, max_new_tokens=8)


def test_the_distance_falls(learned: lineas.Intervention) -> None:
    assert len(learned.maps) == families.LAYERS
    assert learned.facts["cost_after"] < 0.85 * learned.facts["cost"][0]
    assert learned.facts["divergence"] == pytest.approx(0.02, rel=0.03)


def test_every_row_of_a_batch_has_its_own_strength(model: lineas.TextModel, learned: lineas.Intervention) -> None:
    strengths = torch.linspace(0, 1, len(families.PROMPTS))
    with lineas.steer(model, learned, strengths):
        together = continued(model, families.PROMPTS)
    alone = []
    for prompt, strength in zip(families.PROMPTS, strengths.tolist()):
        with lineas.steer(model, learned, strength):
            alone += continued(model, [prompt])
    assert together == alone != continued(model, families.PROMPTS)
    assert together[0] == continued(model, families.PROMPTS[:1])[0]


def test_it_is_judged(model: lineas.TextModel, learned: lineas.Intervention, tmp_path: Path) -> None:
    plan = Plan(families.PROMPTS, families.OTHER_PROMPTS, {"long": lambda texts: [min(1, len(t) / 9) for t in texts]})
    untouched, steered = evaluate(model, [Untouched(), Steered("it", learned)], plan, str(tmp_path)).rows
    assert not untouched.errors | steered.errors
    assert untouched.values["kl"] == 0 < steered.values["kl"]
    assert steered.values["perplexity"] != untouched.values["perplexity"]


def only(*names: str) -> pytest.MarkDecorator:
    """Run a test on the networks of these families."""
    return pytest.mark.parametrize("model", names, indirect=True)


def learns(model: lineas.TextModel, method: Method) -> None:
    learned = lineas.learn(model, families.PROMPTS, families.OTHER_PROMPTS, method, progress=False)
    before = model.network(torch.tensor([[1, 5, 9, 30]])).logits
    with lineas.steer(model, learned):
        assert not torch.equal(model.network(torch.tensor([[1, 5, 9, 30]])).logits, before)


@pytest.mark.filterwarnings("ignore:prompts of .* are padded")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_other_methods_learn_at_their_own_sites(model: lineas.TextModel, method: Method) -> None:
    learns(model, method)


@pytest.mark.filterwarnings("ignore:prompts of .* are padded")
@only(*(family for family in families.RECURRENT if family != "mamba2"))
def test_aura_learns_where_there_are_mlps(model: lineas.TextModel) -> None:
    learns(model, lineas.AurA())


@only("mamba2")
def test_aura_is_refused_where_there_are_none(model: lineas.TextModel) -> None:
    with pytest.raises(lineas.LineasError, match="no module of Mamba2ForCausalLM matches"):
        learns(model, lineas.AurA())


PAST_PEFT = ["falcon_h1", "mamba2"]
"""Kernels of Mamba read some of their weights past peft's layers."""


@only(*(family for family in families.RECURRENT if family not in PAST_PEFT))
def test_lora_is_learned(model: lineas.TextModel, tmp_path: Path) -> None:
    before = [name for name, _ in model.network.named_modules()]
    LoRA(epochs=3).fine_tune(model, families.OTHER_PROMPTS, tmp_path / "adapter")
    systems = [Untouched(), Adapted("lora", str(tmp_path / "adapter"))]
    untouched, adapted = evaluate(model, systems, Plan((), families.OTHER_PROMPTS)).rows
    assert adapted.values["perplexity"] < untouched.values["perplexity"]
    assert [name for name, _ in model.network.named_modules()] == before


@only(*PAST_PEFT)
def test_lora_is_refused_where_it_would_be_read_past(model: lineas.TextModel, tmp_path: Path) -> None:
    before = [name for name, _ in model.network.named_modules()]
    with pytest.raises(lineas.LineasError, match=f"peft cannot put LoRA on {model.name}: .*out_proj"):
        LoRA(epochs=1).fine_tune(model, families.OTHER_PROMPTS, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    assert [name for name, _ in model.network.named_modules()] == before
