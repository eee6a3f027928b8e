"""Networks that also read pictures: their language model is learned on, steered and judged; the rest is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import lineas
from lineas import LineasError
from lineas.evaluation import Plan, Steered, Untouched, evaluate
from lineas.evaluation.variants import Adapted
from lineas.learning.lora import LoRA
from lineas.models import checkpoint

SIGHT = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
TOWER = {**SIGHT, "num_hidden_layers": 3}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
GATED = {**families.SHARED, **families.GATED}
LLAMA4 = {"num_local_experts": 2, "intermediate_size_mlp": 48, "head_dim": 8}

# By name of the network in transformers (and of its config): the config of its text and of its pictures, whose tower
# is deeper than the language model.
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Gemma3": ({**families.SHARED, **families.GEMMA}, TOWER),
    "Llava": ({**GATED, "model_type": "llama"}, {**TOWER, "model_type": "clip_vision_model"}),
    "Llama4": ({**GATED, **LLAMA4}, {**TOWER, "projector_input_dim": 32, "projector_output_dim": 32}),
    "Qwen2_5_VL": (
        {**GATED, "rope_scaling": ROPE, "rope_parameters": ROPE},
        {"hidden_size": 32, "depth": 3, "num_heads": 4, "intermediate_size": 48, "out_hidden_size": 32},
    ),
}


def network(name: str) -> nn.Module:
    text, sight = CONFIGS[name]
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=sight)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = getattr(transformers, f"{name}ForConditionalGeneration")(config)
        for parameter in made.parameters():
            noise = torch.randn_like(parameter)
            parameter.add_(0.2 * noise) if parameter.dim() == 1 else parameter.copy_(0.25 * noise)
    return made.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> lineas.TextModel:
    return lineas.TextModel(network(request.param), families.tokenizer(), name=request.param)


def continued(model: lineas.TextModel) -> list[str]:
    return model.generate(families.PROMPTS, temperature=0, max_new_tokens=8)


@pytest.mark.filterwarnings("ignore:prompts of Llama4 are padded")
@pytest.mark.parametrize("method", [lineas.MeanAcT(), lineas.CAA(), lineas.ITIc(), lineas.AurA()], ids=type)
def test_every_method_finds_its_sites_in_the_language_model(method: Any, model: lineas.TextModel) -> None:
    if model.name == "Llama4" and isinstance(method, lineas.AurA):
        pytest.skip("Llama 4 hands every token to every expert, so its experts put out more tokens than came in")
    learned = lineas.learn(model, families.PROMPTS, families.OTHER_PROMPTS, method, progress=False)
    assert learned.maps
    assert all("language_model" in name and "vision" not in name for name in learned.maps)


@pytest.mark.filterwarnings("ignore:prompts of Llama4 are padded")
def test_it_is_learned_steered_and_judged(model: lineas.TextModel, tmp_path: Path) -> None:
    learned = lineas.learn(model, families.PROMPTS, families.OTHER_PROMPTS, lineas.LinEAS(steps=8), progress=False)
    assert {name.split(".layers.")[1][0] for name in learned.maps} == {"0", "1"}
    assert all("language_model" in name for name in learned.maps)
    assert learned.facts["cost_after"] < 0.9 * learned.facts["cost"][0]
    untouched = continued(model)
    with lineas.steer(model, learned, torch.linspace(0, 1, len(untouched))):
        steered = continued(model)
    assert steered[0] == untouched[0]
    assert steered != untouched
    plan = Plan(families.PROMPTS, families.OTHER_PROMPTS, {"long": lambda texts: [min(1, len(t) / 9) for t in texts]})
    _, row = evaluate(model, [Untouched(), Steered("it", learned)], plan, tmp_path).rows
    assert not row.errors
    assert row.values["kl"] > 0


def test_lora_adapts_the_language_model_alone(model: lineas.TextModel, tmp_path: Path) -> None:
    untouched = continued(model)
    LoRA().fine_tune(model, families.OTHER_PROMPTS, tmp_path / "adapter")
    adapted = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert adapted
    assert all("language_model" in name for name in adapted)
    assert continued(model) == untouched
    plan = Plan([], families.OTHER_PROMPTS, {})
    (row,) = evaluate(model, [Adapted("adapted", tmp_path / "adapter")], plan, tmp_path / "found").rows
    assert row.values["kl"] > 0


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "Llama4"])  # of which transformers loads the text
def test_it_is_loaded_from_a_folder(name: str, tmp_path: Path) -> None:
    made = network(name)
    made.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    families.tokenizer().save_pretrained(tmp_path)
    loaded = lineas.load(tmp_path, dtype="float32")
    assert type(loaded.network) is type(made)
    assert continued(loaded) == continued(lineas.TextModel(made, families.tokenizer()))  # pyright: ignore[reportArgumentType]


def test_serving_one_is_refused(tmp_path: Path) -> None:
    network("Llava").save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    with pytest.raises(LineasError, match="LlavaConfig is of no causal language model, so it is not served"):
        checkpoint.skeleton_of(tmp_path)


def test_parts_that_text_never_reaches_are_refused_by_that_name(model: lineas.TextModel) -> None:
    with pytest.raises(LineasError, match=f"parts of {model.name}.* that text never reaches.*its language model"):
        model.sites(r".*(visual|vision).*")
    assert next(site.name for site in model.sites(".*lm_head")).endswith("lm_head")
    assert model.sites(r".*language_model")  # the whole of it
