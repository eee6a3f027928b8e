"""Folding checks that modules compute what their weights say, that nothing else is carried, and its own result."""

# pyright: reportPrivateImportUsage=false
# (diffusers loads what it exports when that is asked for)

from __future__ import annotations

import copy
import json
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import families
import pipelines
import pytest
import torch
import transformers
from families import OTHER_PROMPTS, PROMPTS
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from transformers import AutoModelForCausalLM, PreTrainedConfig

import lineas
from lineas import AffineMap, Intervention, LineasError
from lineas.folding.probes import norm_offset, reason_not_linear
from lineas.folding.slots import folding, slots
from lineas.models.read_back import verify_written
from lineas.sites import Site

INPUTS = {"input_ids": torch.randint(3, families.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))}
BEFORE_MLP, DOWN, INPUT = (
    f"model.layers.0.{name}" for name in ("post_attention_layernorm", "mlp.down_proj", "input_layernorm")
)
BOTH = AffineMap(torch.full((32,), 1.5), torch.full((32,), 0.5))
SCALE = AffineMap(torch.full((32,), 1.5), torch.zeros(32))


def at(name: str, map_: AffineMap = BOTH) -> Intervention:
    return Intervention({name: map_})


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(**INPUTS).logits


def state(network: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_as_before(network: Any, before: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert network.config.to_dict() == config


def lora(*to: str) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=12, target_modules=list(to), init_lora_weights=False)


class LoraLinear(nn.Linear):
    """A linear with an adapter of its own, as trainers have."""

    def __init__(self, of: nn.Linear, size: float = 0.2) -> None:
        super().__init__(of.in_features, of.out_features, of.bias is not None)
        self.load_state_dict(of.state_dict())
        generator = torch.Generator().manual_seed(0)
        self.down = size * torch.randn(4, of.in_features, generator=generator)
        self.up = size * torch.randn(of.out_features, 4, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x) + x @ self.down.T @ self.up.T


class Loud(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x) + 0.1 * x


class OfFakes(nn.Linear):
    """A linear that rounds its weight, as while learning for a quantised one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return nn.functional.linear(x, (self.weight * 4).round() / 4, self.bias)


# ---- modules


def test_a_linear_is_what_it_computes() -> None:
    plain = nn.Linear(8, 6)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="circular", groups=2, dilation=2)
    for module in (plain, nn.Linear(8, 6, bias=False), conv, transformers.pytorch_utils.Conv1D(6, 8)):
        assert reason_not_linear(module) == ""
        assert reason_not_linear(copy.deepcopy(module).half()) == ""
        assert reason_not_linear(copy.deepcopy(module).bfloat16()) == ""
    assert "a LoraLinear does more than multiply by its weight" in reason_not_linear(LoraLinear(plain))
    assert "an OfFakes" in reason_not_linear(OfFakes(8, 6)).replace("a OfFakes", "an OfFakes")
    hooked = copy.deepcopy(plain)
    handle = hooked.register_forward_hook(lambda _, __, result: 2 * result)  # pyright: ignore[reportOperatorIssue]
    assert "does more" in reason_not_linear(hooked)
    handle.remove()
    seen: list[torch.Tensor] = []
    hooked.register_forward_hook(lambda _, __, result: seen.append(result))  # reads alone  # pyright: ignore[reportArgumentType]
    assert reason_not_linear(hooked) == ""
    patched = copy.deepcopy(plain)
    patched.forward = lambda x: nn.Linear.forward(patched, x).relu()  # pyright: ignore[reportAttributeAccessIssue]
    assert "does more" in reason_not_linear(patched)


def test_a_weight_that_is_computed_is_refused_by_what_computes_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first of them is old
        old = nn.utils.weight_norm(nn.Linear(8, 6))
    assert "its weight is computed by weight_norm" in reason_not_linear(old)
    assert "its weight is computed by weight_norm" in reason_not_linear(parametrizations.weight_norm(nn.Linear(8, 6)))
    assert "its weight is computed by spectral_norm" in reason_not_linear(
        parametrizations.spectral_norm(nn.Linear(8, 6))
    )
    norm = nn.LayerNorm(8)
    parametrize.register_parametrization(norm, "weight", nn.Softplus())
    assert norm_offset(norm) is None
    held = nn.ModuleDict({"norm": norm})
    assert slots(held, Site("norm")).reason == "its weight is computed by softplus"


def test_a_norm_is_what_it_computes_as_it_is() -> None:
    for module in (nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.RMSNorm(8)):
        nn.init.normal_(module.weight)
        assert norm_offset(module) == 0
        assert norm_offset(copy.deepcopy(module).bfloat16()) == 0
    assert norm_offset(Loud(8)) is None
    hooked = nn.LayerNorm(8)
    hooked.register_forward_hook(lambda _, __, result: result + 1)  # pyright: ignore[reportOperatorIssue]
    assert norm_offset(hooked) is None


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_norm_in_half_precision_is_known_whatever_its_weights(kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        for module in (nn.LayerNorm(8), nn.RMSNorm(8)):
            module.weight.data.normal_(generator=generator)
            assert norm_offset(module.to(kind)) == 0


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_linears_that_compute_more_are_named_and_facts_say_so(kind: torch.dtype) -> None:
    model = families.model("llama", mlp_bias=True)
    model.network.to(kind)
    for layer in families.blocks(model.network):
        layer.mlp.gate_proj = LoraLinear(layer.mlp.gate_proj).to(kind)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        layer.mlp.gate_proj.down, layer.mlp.gate_proj.up = (  # pyright: ignore[reportAttributeAccessIssue]
            x.to(kind)
            for x in (layer.mlp.gate_proj.down, layer.mlp.gate_proj.up)  # pyright: ignore[reportAttributeAccessIssue]
        )
    assert folding(model.network, Site(BEFORE_MLP)) == "scale"
    with pytest.raises(LineasError, match="gate_proj reads it, and a LoraLinear does more than multiply by its weight"):
        lineas.fold(model, at(BEFORE_MLP))
    families.blocks(model.network)[0].mlp.down_proj = LoraLinear(nn.Linear(48, 32)).to(kind)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(LineasError, match=r"mlp.down_proj: a LoraLinear does more than multiply"):
        lineas.fold(model, at(DOWN))


def test_a_computed_weight_does_not_swallow_a_scale() -> None:
    model = families.model("llama")
    parametrizations.weight_norm(model.network.get_submodule(DOWN))
    with pytest.raises(LineasError, match=r"mlp.down_proj: its weight is computed by weight_norm"):
        lineas.fold(model, at(DOWN, SCALE))


# ---- networks


def test_adapters_are_refused_by_name_before_anything_is_changed() -> None:
    wrapped = get_peft_model(families.network("llama"), lora("q_proj", "v_proj")).eval()
    inside = families.network("qwen2")
    inside.add_adapter(lora("q_proj"))  # pyright: ignore[reportCallIssue]
    for network, prefix in ((wrapped, "base_model.model."), (inside.eval(), "")):
        before = state(network)
        for map_ in (BOTH, SCALE):
            with pytest.raises(LineasError, match="this model carries the adapter 'default'; merge it first"):
                lineas.fold(lineas.TextModel(network, families.tokenizer()), at(prefix + INPUT, map_), in_place=True)
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    merged = wrapped.merge_and_unload()
    with lineas.steer(merged, at(INPUT)):
        live = logits(merged)
    torch.testing.assert_close(logits(lineas.fold(merged, at(INPUT))), live, rtol=1e-5, atol=1e-5)


def test_a_wrapper_that_is_steered_is_told_what_it_wraps() -> None:
    wrapped = get_peft_model(families.network("llama"), lora("q_proj"))
    with pytest.raises(LineasError, match=r"PeftModel does not have; it wraps one that has it: give its base_model\.m"):
        lineas.steer(wrapped, at(INPUT))
    with lineas.steer(wrapped.base_model.model, at(INPUT)) as live:
        assert live.verify() > 0


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings("ignore:.* scales are lost to b?float16")
def test_half_precision_hides_no_fault_behind_its_rounding(kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for family in ("llama", "gpt2", "mixtral"):  # in the last, rounding sends some tokens to other experts
        network = families.network(family).to(kind)
        name = families.block(family) + (".ln_1" if family == "gpt2" else ".self_attn.q_proj")
        for size in (0.01, 1.0):
            few = (torch.rand(32, generator=generator) < 0.3) * torch.randn(32, generator=generator)
            lineas.fold(network, at(name, AffineMap(1 + size * few, torch.zeros(32))))
    network = families.network("llama").to(kind)
    families.blocks(network)[0].mlp.register_forward_hook(lambda _, args, result: result + args[0])  # pyright: ignore[reportAttributeAccessIssue]
    before = state(network)
    with pytest.raises(LineasError, match="does not put out what it does steered"):
        lineas.fold(network, at(BEFORE_MLP), in_place=True)
    assert_as_before(network, before, network.config.to_dict())  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def test_a_pipelines_adapter_is_refused_too() -> None:
    pipe = pipelines.pipeline("stable diffusion 1")
    pipe.unet.add_adapter(lora("to_q"), adapter_name="style")
    model = lineas.ImageModel(pipe, steps=1)
    with pytest.raises(LineasError, match="carries the adapter 'style'"):
        lineas.fold(model, at("unet.conv_norm_out", AffineMap(torch.full((16,), 1.5), torch.zeros(16))))


def test_wrappers_are_refused_by_name() -> None:
    network = families.network("llama")
    for wrapper, name, attribute in (
        (nn.DataParallel(network), "DataParallel", "module"),
        (torch.compile(network, backend="eager"), "OptimizedModule", "_orig_mod"),
    ):
        with pytest.raises(LineasError, match=f"a {name} wraps this LlamaForCausalLM.*attribute {attribute}"):
            lineas.fold(wrapper, at(f"{attribute}.{INPUT}"))  # pyright: ignore[reportArgumentType]


def test_guidance_of_one_half_does_not_fold() -> None:
    model = pipelines.image_model("stable diffusion 1").set(guidance="conditional")
    with pytest.raises(LineasError, match="weights serve both halves"):
        lineas.fold(model, at("unet.conv_norm_out", AffineMap(torch.full((16,), 1.5), torch.zeros(16))))


@pytest.mark.parametrize("in_place", [True, False])
def test_what_came_out_otherwise_is_refused_and_taken_back(in_place: bool) -> None:
    """A block that computes more with what the norm gives than any linear shows: the last check finds it."""
    network: Any = families.network("llama", attention_bias=False)
    mlp = network.model.layers[0].mlp
    mlp.register_forward_hook(lambda _, args, result: result + args[0])
    before, config = state(network), network.config.to_dict()
    with pytest.raises(LineasError, match=r"folded, this LlamaForCausalLM does not put out what it does steered"):
        lineas.fold(network, at(BEFORE_MLP), in_place=in_place)
    assert_as_before(network, before, config)
    kin: Any = families.network("qwen2", tie_word_embeddings=True)
    kin.model.layers[0].mlp.register_forward_hook(lambda _, args, result: result + args[0])
    before, config = state(kin), kin.config.to_dict()
    head = AffineMap(torch.full((families.VOCABULARY,), 1.5), torch.zeros(families.VOCABULARY))
    with pytest.raises(LineasError, match="does not put out what it does steered"):
        lineas.fold(kin, Intervention({BEFORE_MLP: BOTH, "lm_head": head}), in_place=in_place)
    assert_as_before(kin, before, config)
    assert kin.lm_head.weight is kin.model.embed_tokens.weight


def test_a_shared_bias_and_a_shared_norm_become_their_own() -> None:
    network: Any = families.network("gpt2")
    one, other = network.transformer.h[0].ln_1, network.transformer.h[1].ln_1
    other.weight, other.bias = one.weight, one.bias
    maps = at("transformer.h.0.ln_1")
    with lineas.steer(network, maps):
        live = logits(network)
    torch.testing.assert_close(logits(lineas.fold(network, maps)), live, rtol=1e-5, atol=1e-5)


def test_a_network_of_unknown_inputs_folds_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="the folded network was not compared with the steered one"):
        folded = lineas.fold(nn.Sequential(nn.Linear(4, 32)), at("0"))
    with pytest.warns(UserWarning, match="changes nothing, so there is nothing to fold"):
        again = lineas.fold(folded, at("0", AffineMap(torch.ones(32), torch.zeros(32))))
    assert torch.equal(folded[0].bias, again[0].bias)  # pyright: ignore[reportArgumentType]


# ---- configs


def test_a_config_that_allows_its_switches_together_alone_is_asked_so(tmp_path: Path) -> None:
    """InternLM3's checks itself when it is saved."""
    config: Any = transformers.AutoConfig.for_model("internlm3", **families.SHARED, **families.GATED, head_dim=8)
    model = lineas.TextModel(AutoModelForCausalLM.from_config(config), families.tokenizer())
    folded = lineas.fold(model, at(BEFORE_MLP))
    folded.save_pretrained(tmp_path / "folded")
    told = json.loads((tmp_path / "folded" / "config.json").read_text())
    assert told["model_type"] == "internlm3"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
    assert torch.equal(logits(again), logits(folded.network))


def test_switches_follow_the_config_as_it_is_now() -> None:
    network: Any = families.network("mistral")
    assert folding(network, Site(BEFORE_MLP)) == "exact"
    network.config.sliding_window = 4
    assert folding(network, Site(BEFORE_MLP)) == "scale"
    llama: Any = families.network("llama")
    assert folding(llama, Site(BEFORE_MLP)) == "exact"
    del llama.config.mlp_bias
    assert folding(llama, Site(INPUT)) == "exact"


class Own(nn.Module):
    """A network that its config alone does not make."""

    config = PreTrainedConfig(attention_bias=False)  # pyright: ignore[reportCallIssue]

    def __init__(self, config: Any, twice: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(32)


def test_an_unknown_class_has_no_switches() -> None:
    assert folding(Own(Own.config, 2), Site("norm")) == "scale"


# ---- numbers


def test_weights_that_overflow_are_refused_with_the_site() -> None:
    network = families.network("llama").half()
    before = state(network)
    large = AffineMap(torch.full((32,), 1e5), torch.zeros(32))
    for in_place in (True, False):
        with pytest.raises(LineasError, match=rf"the map at {BEFORE_MLP} is not finite in float16"):
            lineas.fold(network, at(BEFORE_MLP, large), in_place=in_place)
        with pytest.raises(LineasError, match=r"bias that takes the map at .*input_layernorm is not finite in float16"):
            lineas.fold(network, at(INPUT, AffineMap(torch.ones(32), torch.full((32,), 1e6))), in_place=in_place)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_what_rounding_takes_away_is_counted() -> None:
    model = families.model("llama")
    model.network.bfloat16()
    few = AffineMap(torch.cat([torch.full((6,), 1.0001), torch.ones(26)]), torch.zeros(32))
    with pytest.warns(UserWarning, match="6 of 6 scales are lost to bfloat16, so the folded model is the untouched"):
        made = lineas.fold(model, at(BEFORE_MLP, few))
    assert made.provenance is not None
    assert made.provenance["lost_to_rounding"] == {"scales": 6, "shifts": 0, "of_scales": 6, "of_shifts": 0}
    assert all(torch.equal(t, made.network.state_dict()[name]) for name, t in model.network.state_dict().items())
    half = AffineMap(torch.tensor([1.0001, 1.5] * 16), torch.zeros(32))
    for name in (BEFORE_MLP, DOWN):
        with pytest.warns(UserWarning, match="16 of 32 scales are lost to bfloat16; a model loaded in float32"):
            lineas.fold(model, at(name, half))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lineas.fold(families.model("llama"), at(BEFORE_MLP, half))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", [1e-3, 1e-2, 1.0])
def test_rounding_of_what_is_put_out_is_no_fault(kind: torch.dtype, strength: float, stories: lineas.TextModel) -> None:
    model = lineas.TextModel(copy.deepcopy(stories.network).to(kind), stories.tokenizer)
    map_ = AffineMap(torch.ones(64), 0.05 * torch.randn(64, generator=torch.Generator().manual_seed(0)))
    found = Intervention({f"model.layers.{i}.self_attn.o_proj": map_ for i in range(5)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lineas.fold(model, found, strength)


def test_strengths_are_taken_as_steer_takes_them() -> None:
    model = families.model("llama")
    found = at(BEFORE_MLP).with_facts(calibration={"strength": 0.5})
    calibrated, half = lineas.fold(model, found, "calibrated"), lineas.fold(model, found, 0.5)
    assert torch.equal(logits(calibrated.network), logits(half.network))
    assert calibrated.provenance is not None
    assert calibrated.provenance["strength"] == 0.5
    with pytest.raises(LineasError, match="has no calibrated strength"):
        lineas.fold(model, at(BEFORE_MLP), "calibrated")
    with pytest.raises(LineasError, match="a number or 'calibrated', not 'much'"):
        lineas.fold(model, found, "much")  # pyright: ignore[reportArgumentType]
    with pytest.raises(LineasError, match="fold takes an Intervention, not a str"):
        lineas.fold(model, "calm")  # pyright: ignore[reportArgumentType]
    with pytest.warns(UserWarning, match="strength -1.0 is outside 0 to 1"):
        lineas.fold(model, found, -1)
    with pytest.warns(UserWarning, match="there is nothing to fold: the folded model is the untouched one"):
        lineas.fold(model, found, 0)


def test_maps_at_a_modulated_norm_and_at_its_linear_fold_together() -> None:
    model = pipelines.image_model("flux")
    name = "transformer.transformer_blocks.0.norm1"
    generator = torch.Generator().manual_seed(0)
    maps = {at: AffineMap(1 + 0.2 * torch.randn(d, generator=generator), 0.2 * torch.randn(d, generator=generator))
            for at, d in ((name, 32), (f"{name}.norm", 32), (f"{name}.linear", 192))}  # fmt: skip
    assert lineas.fold(model, Intervention(maps)).provenance


# ---- what was written


def test_a_model_that_does_not_write_itself_whole_is_no_checkpoint(tmp_path: Path) -> None:
    network = families.network("llama")
    network.add_adapter(lora("q_proj"))  # pyright: ignore[reportCallIssue]
    with pytest.raises(LineasError, match="a LlamaForCausalLM did not write itself whole: there is no config"):
        lineas.TextModel(network, families.tokenizer()).save_pretrained(tmp_path / "made")
    computed = families.network("llama")
    parametrizations.weight_norm(computed.get_submodule(DOWN))
    with pytest.raises(LineasError, match="down_proj"):
        lineas.TextModel(computed, families.tokenizer()).save_pretrained(tmp_path / "made")
    with pytest.raises(LineasError, match="a Sequential cannot write itself"):
        lineas.TextModel(nn.Sequential(nn.Linear(2, 2)), families.tokenizer()).save_pretrained(tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_every_tensor_of_what_was_written_is_compared(tmp_path: Path) -> None:
    for family in ("llama", "mixtral"):  # the second stores its experts one by one
        network: Any = families.network(family)
        network.save_pretrained(tmp_path / family)
        verify_written(tmp_path / family, network)
        with torch.no_grad():
            network.model.layers[1].self_attn.o_proj.weight[3, 3] += 1e-6
        with pytest.raises(LineasError, match=r"layers.1.self_attn.o_proj.weight .* is not the one"):
            verify_written(tmp_path / family, network)
    llama: Any = families.network("llama", tie_word_embeddings=True)
    llama.save_pretrained(tmp_path / "tied")
    llama.lm_head.weight = nn.Parameter(2 * llama.lm_head.weight)
    with pytest.raises(LineasError, match="lm_head"):
        verify_written(tmp_path / "tied", llama)


def test_a_pipeline_in_half_precision_is_read_in_one_type(tmp_path: Path) -> None:
    """Plain diffusers would read its own parts in float32 and the text encoder in what its config says."""
    pipelines.pipeline("stable diffusion 1").to(torch.float16).save_pretrained(tmp_path / "half")
    model = lineas.load(tmp_path / "half", dtype="checkpoint")
    parts = [part for part in model.pipeline.components.values() if isinstance(part, nn.Module)]  # pyright: ignore[reportAttributeAccessIssue]
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.float16}
    model.save_pretrained(tmp_path / "again")
    plain: Any = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "again")
    drawn = plain(["a"], num_inference_steps=1, height=32, width=32, output_type="latent").images
    assert drawn.isfinite().all()
    shapes = diffusers.DiffusionPipeline.from_pretrained(Path(lineas.__file__).parent / "data" / "models" / "shapes")
    for made in (plain, shapes):
        parts = [part for part in made.components.values() if isinstance(part, nn.Module)]
        assert len({weight.dtype for part in parts for weight in part.parameters()}) == 1
    stored: Any = lineas.load("shapes", dtype="checkpoint")
    assert stored.pipeline.text_encoder.dtype == stored.pipeline.unet.dtype == torch.float16


# ---- learning


def test_learning_ends_well_on_networks_of_unknown_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = get_peft_model(families.network("llama"), lora("q_proj")).eval()
    model = lineas.TextModel(wrapped, families.tokenizer())
    sites = r".*post_attention_layernorm"
    for method in (lineas.LinEAS(steps=2), lineas.MeanAcT()):
        learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, method, sites=sites, progress=False)
        assert set(learned.facts["folds"].values()) == {"scale"}
    parallel = lineas.TextModel(nn.DataParallel(families.network("llama")), families.tokenizer())
    with pytest.warns(UserWarning, match="padded instead of packed, .* does not say how many layers it has"):
        lineas.learn(parallel, PROMPTS, OTHER_PROMPTS, lineas.MeanAcT(), sites=sites, progress=False)

    def broken(*_: object) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(import_module("lineas.learning.learn"), "folding", broken)
    monkeypatch.setattr(import_module("lineas.learning.learn"), "outputs", broken)
    monkeypatch.setattr(import_module("lineas.learning.learn").ModelIdentity, "of", broken)
    with pytest.warns(UserWarning, match="no fingerprint"):
        learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, lineas.MeanAcT(), sites=r".*\.mlp", progress=False)
    assert set(learned.facts["folds"].values()) == {"unknown"}


def test_maps_that_nobody_reads_are_told_of() -> None:
    model, relative = families.model("mixtral"), lineas.LinEAS(optimizer="relative", steps=2)
    with pytest.warns(UserWarning, match=r"the maps at model.layers.0.mlp.gate, model.layers.1.mlp.gate move nothing"):
        learned = lineas.learn(model, PROMPTS, OTHER_PROMPTS, relative, sites=r".*mlp\.gate", progress=False)
    assert learned.facts["moves_output"] is False
    assert "moves_output" not in lineas.learn(model, PROMPTS, OTHER_PROMPTS, lineas.MeanAcT(), progress=False).facts
    with pytest.raises(
        lineas.LineasError, match=r"model.layers.0.mlp.gate and the 1 other sites? changes no prediction"
    ):
        lineas.learn(model, PROMPTS, OTHER_PROMPTS, sites=r".*mlp\.gate", progress=False)


def test_versions_are_unknown_where_lineas_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from lineas import versions

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", missing)
    assert versions.stamp()["versions"]["lineas"] == "unknown"
