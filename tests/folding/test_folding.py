"""Folding: the folded network computes what the live one does, in every family, and survives the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from families import block
from optimum.quanto import freeze, qint8, quantize
from torch import nn
from transformers import AutoModelForCausalLM

import lineas
from lineas import AffineMap, Intervention, LineasError
from lineas.folding.slots import folding
from lineas.modules import is_linear
from lineas.sites import Site

INPUTS = {"input_ids": torch.randint(3, families.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))}


def width(module: Any) -> int:
    return module.weight.shape[1] if type(module).__name__ == "Conv1D" else module.weight.shape[0]


def random_map(network: nn.Module, site: Site, generator: torch.Generator) -> AffineMap:
    """A large map of what folds at a site."""
    kind, d = folding(network, site), width(network.get_submodule(site.module))
    scale = 1 + 0.5 * torch.randn(d, generator=generator) * (kind in ("exact", "scale"))
    shift = 0.5 * torch.randn(d, generator=generator) * (kind in ("exact", "shift"))
    return AffineMap(scale, shift)


def everything(network: nn.Module, prefix: str, seed: int = 2) -> Intervention:
    """Random maps at all linears and norms below a prefix, all of them at once."""
    generator = torch.Generator().manual_seed(seed)
    sites = [Site(name) for name, _ in network.named_modules() if name.startswith(prefix)]
    chosen = [site for site in sites if folding(network, site) != "no"]
    return Intervention({site.name: random_map(network, site, generator) for site in chosen})


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(**INPUTS).logits


def assert_folds(network: nn.Module, intervention: Intervention, strength: float = 1.0) -> nn.Module:
    """The folded network's logits are the live one's to 1e-5 of their largest, and the live network is as before."""
    untouched = logits(network)
    with lineas.steer(network, intervention, strength):
        live = logits(network)
    folded = lineas.fold(network, intervention, strength)
    largest = float(live.abs().max())
    assert float((logits(folded) - live).abs().max()) <= 1e-5 * largest
    assert float((live - untouched).abs().max()) > 1e-3 * largest
    assert torch.equal(logits(network), untouched)
    return folded


@pytest.mark.parametrize("family", families.CONFIGS)
def test_a_folded_network_computes_what_the_live_one_does(family: str) -> None:
    network = families.network(family)
    intervention = everything(network, "")
    assert len(intervention.maps) > 4
    assert_folds(network, intervention, 0.7)


@pytest.mark.parametrize("family", families.CONFIGS)
def test_every_site_alone_folds_as_it_is_said_to(family: str) -> None:
    network, prefix = families.network(family), block(family)
    for name, map_ in everything(network, prefix).maps.items():
        assert_folds(network, Intervention({name: map_}))


def scales_alone(family: str) -> list[str]:
    """The modules of the first block whose scale folds and whose shift does not."""
    network, prefix = families.network(family), block(family)
    names = [name for name, _ in network.get_submodule(prefix).named_modules(prefix=prefix)]
    return [name for name in names if folding(network, Site(name)) == "scale"]


FOLDS_WHOLE = ["llama", "mistral", "qwen2", "gpt2", "gpt_neox", "opt"]


@pytest.mark.parametrize("family", FOLDS_WHOLE)
def test_every_shift_folds_where_the_family_has_a_bias_for_it(family: str) -> None:
    assert scales_alone(family) == []


@pytest.mark.parametrize("family", [family for family in families.CONFIGS if family not in FOLDS_WHOLE])
def test_what_is_said_not_to_fold_is_refused_with_its_name_and_a_reason(family: str) -> None:
    network = families.network(family)
    widths = {name: width(network.get_submodule(name)) for name in scales_alone(family)}
    refused = {name: AffineMap(torch.ones(d), torch.ones(d)) for name, d in widths.items()}
    assert refused
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(LineasError, match="do not fold") as error:
        lineas.fold(network, Intervention(refused), in_place=True)
    assert all(name in str(error.value) for name in refused)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_kin_of_llama_become_llamas_only_where_they_need_its_biases(family: str) -> None:
    network = families.network(family)
    queries = AffineMap(torch.full((32,), 1.5), torch.zeros(32))
    before = AffineMap(torch.full((32,), 1.5), torch.ones(32))
    scaled = lineas.fold(network, Intervention({"model.layers.0.self_attn.q_proj": queries}))
    assert type(scaled) is type(network)
    shifted = assert_folds(network, Intervention({"model.layers.1.post_attention_layernorm": before}))
    assert type(shifted).__name__ == "LlamaForCausalLM"


def test_what_llama_does_not_compute_is_refused() -> None:
    network = families.network("mistral", sliding_window=4)
    ones = AffineMap(torch.ones(32), torch.ones(32))
    with pytest.raises(LineasError, match="gate_proj has no bias, and no setting of MistralForCausalLM gives it one"):
        lineas.fold(network, Intervention({"model.layers.0.post_attention_layernorm": ones}))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen2"])
def test_an_output_layer_tied_to_the_embedding_is_untied_and_nothing_else_is(family: str, tmp_path: Path) -> None:
    model = families.model(family, tie_word_embeddings=True)
    network: Any = model.network
    site = Site("lm_head")
    last = Intervention({"lm_head": random_map(network, site, torch.Generator().manual_seed(0))})
    folded = lineas.fold(model, last)
    with lineas.steer(network, last):
        torch.testing.assert_close(logits(folded.network), logits(network), atol=1e-4, rtol=1e-5)
    folded.save_pretrained(tmp_path / "untied")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "untied")), logits(folded.network))
    inner = lineas.fold(model, everything(network, block(family)))
    assert inner.network.lm_head.weight is inner.network.get_input_embeddings().weight  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    inner.save_pretrained(tmp_path / "tied")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "tied")), logits(inner.network))


@pytest.mark.filterwarnings("ignore:.* scales are lost to b?float16")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_rounded_once(dtype: torch.dtype) -> None:
    exact = families.network("llama")
    half = families.network("llama").to(dtype)
    exact.load_state_dict(half.state_dict())  # the same numbers, in float32
    intervention = everything(half, "")
    folded = lineas.fold(half, intervention).state_dict()
    for name, weight in lineas.fold(exact, intervention).state_dict().items():
        assert folded[name].dtype == dtype
        assert torch.equal(folded[name], weight.to(dtype)), name


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "opt"])
def test_a_quantised_network_folds_into_its_norms_and_biases(family: str) -> None:
    """Linears in 8 bits stay as they are; what their rows would take is said not to fold."""
    network = families.network(family)
    quantize(network, weights=qint8, exclude=["lm_head"])
    freeze(network)
    inner = [name for name, module in network.named_modules() if is_linear(module) and name != "lm_head"]
    assert inner
    assert {folding(network, Site(name)) for name in inner} <= {"shift", "no"}
    before = {name: network.get_submodule(name).weight._data.clone() for name in inner}  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    intervention, plain = everything(network, ""), logits(network)
    with lineas.steer(network, intervention):
        live = logits(network)
    with pytest.raises(LineasError, match=r"cannot be copied .* in_place=True"):  # quanto's tensors
        lineas.fold(network, intervention)
    folded = lineas.fold(network, intervention, in_place=True)
    largest = float(live.abs().max())
    assert float((logits(folded) - live).abs().max()) <= 1e-5 * largest
    assert float((live - plain).abs().max()) > 1e-3 * largest
    for name in inner:
        assert torch.equal(folded.get_submodule(name).weight._data, before[name])  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]


@pytest.mark.filterwarnings("ignore:strength .* is outside 0 to 1")
def test_strength_is_folded_in_and_any_folds() -> None:
    network = families.network("llama")
    intervention = everything(network, block("llama"))
    for strength in (-0.5, 0.3, 1.5):
        assert_folds(network, intervention, strength)
    as_tensor, as_number = (lineas.fold(network, intervention, s).state_dict() for s in (torch.tensor(0.5), 0.5))  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(weights, as_number[name]) for name, weights in as_tensor.items())
    for strength in (10**400, float("nan"), True):
        with pytest.raises(LineasError, match="the strength of a fold must be a finite number, not "):
            lineas.fold(network, intervention, strength)
    with pytest.warns(UserWarning, match="at strength 0 this intervention changes nothing"):
        still = lineas.fold(network, intervention, 0.0)
    assert all(torch.equal(t, still.state_dict()[name]) for name, t in network.state_dict().items())


def test_a_model_that_is_steered_is_not_folded() -> None:
    network = families.network("llama")
    intervention = everything(network, block("llama"))
    with lineas.steer(network, intervention), pytest.raises(LineasError, match="being steered; detach first"):
        lineas.fold(network, intervention)


def test_another_network_is_refused_unless_forced() -> None:
    model, other = families.model("llama"), families.model("llama", seed=1)
    learned = lineas.learn(model, families.PROMPTS, families.OTHER_PROMPTS, lineas.MeanAcT(), progress=False)
    with pytest.raises(LineasError, match="other norm weights"):
        lineas.fold(other, learned)
    assert lineas.fold(other, learned, other_model=True).provenance
    with pytest.raises(LineasError, match=r"acts on 'model\.layers\.0\.self_attn\.o_proj' and 1 other modules"):
        lineas.fold(families.model("gpt2"), learned, other_model=True)


def test_the_checkpoint_says_where_it_came_from(tmp_path: Path) -> None:
    model = families.model("qwen2")
    learned = lineas.learn(model, families.PROMPTS, families.OTHER_PROMPTS, lineas.LinEAS(steps=2), progress=False)
    lineas.fold(model, learned, 0.5).save_pretrained(tmp_path / "calm")
    told = json.loads((tmp_path / "calm" / "lineas.json").read_text())
    assert (told["base"], told["strength"], told["architecture"]) == ("tiny-qwen2", 0.5, "LlamaForCausalLM")
    assert told["learned_on"]["fingerprint"] == learned.base.fingerprint  # pyright: ignore[reportOptionalMemberAccess]
    assert told["intervention"]["data"] == learned.facts["data"]
    site = "model.layers.0.post_attention_layernorm"
    assert told["sites"][site] == {
        "weight": site,
        "shift_in": ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"],
    }
    assert "tiny-qwen2" in (tmp_path / "calm" / "README.md").read_text()


def test_an_earlier_checkpoint_is_kept_unless_asked_and_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.model("llama")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(LineasError, match="exists already"):
        model.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model", overwrite=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")
    with pytest.raises(LineasError, match="is not a checkpoint, so it is not overwritten"):
        model.save_pretrained(tmp_path / "letters", overwrite=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(model.tokenizer, "save_pretrained", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path / "model", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "qwen3", "llama"])
def test_what_is_learned_foldable_folds(family: str) -> None:
    """Scales alone are learned if no bias takes a shift, and they go part of the way."""
    model = families.model(family)
    recipe = lineas.LinEAS(steps=10, foldable=True)
    learned = lineas.learn(model, families.PROMPTS, families.OTHER_PROMPTS, recipe, progress=False)
    kinds = learned.facts["folds"]
    assert "exact" in kinds.values() if family == "llama" else set(kinds.values()) == {"scale"}
    for name, map_ in learned.maps.items():
        assert bool((map_.scale != 1).any())
        assert bool(map_.shift.any()) == (kinds[name] == "exact")
    assert learned.facts["cost"][-1] < learned.facts["cost"][0]
    assert_folds(model.network, learned)


def test_learning_what_folds_where_nothing_does_is_refused() -> None:
    model = families.model("llama")
    with pytest.raises(LineasError, match=r"2 of 2 sites do not fold.*model\.layers\.0: no weight makes the output"):
        lineas.learn(
            model,
            families.PROMPTS,
            families.OTHER_PROMPTS,
            lineas.LinEAS(foldable=True),
            sites=r"model\.layers\.\d",
            progress=False,
        )


@pytest.mark.parametrize("family", families.CONFIGS)
def test_a_folded_network_is_a_checkpoint_like_any_other(family: str, tmp_path: Path) -> None:
    model = families.model(family)
    intervention = everything(model.network, "")
    folded = lineas.fold(model, intervention)
    folded.save_pretrained(tmp_path / "folded", max_shard_size="40KB")
    assert len(list((tmp_path / "folded").glob("*.safetensors"))) > 1
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "folded", dtype=torch.float32)
    assert type(again) is type(folded.network)
    assert torch.equal(logits(again), logits(folded.network))
