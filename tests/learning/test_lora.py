"""LoRA as a baseline: its loss is the network's own, the network is left as it was, the adapter is what peft reads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from families import OTHER_PROMPTS, PROMPTS
from peft import LoraConfig, PeftModel, get_peft_model

import lineas
from lineas import LineasError
from lineas.evaluation.variants import Adapted
from lineas.learning.lora import LoRA
from lineas.models.adapters import attached


def logits(model: lineas.TextModel) -> torch.Tensor:
    with torch.no_grad():
        return model.network(torch.tensor([model.tokenizer(PROMPTS[0]).input_ids])).logits


@pytest.fixture(scope="module")
def adapter(stories: lineas.TextModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    before = {name: p.clone() for name, p in stories.network.named_parameters()}
    losses = LoRA(epochs=6, learning_rate=5e-3, batch_size=5).fine_tune(stories, OTHER_PROMPTS, folder)
    after = dict(stories.network.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], p) and p.requires_grad for name, p in after.items())
    assert losses[-1] < 0.8 * losses[0]
    encoded = [stories.tokenizer(text).input_ids for text in OTHER_PROMPTS]
    with torch.no_grad():
        own = [
            stories.network(input_ids=torch.tensor([i]), labels=torch.tensor([i])).loss * (len(i) - 1) for i in encoded
        ]
    assert losses[0] == pytest.approx(float(sum(own)) / sum(len(i) - 1 for i in encoded), rel=1e-4)
    return folder


def test_the_adapter_acts_within_the_block_by_its_strength_and_not_after(
    adapter: Path, stories: lineas.TextModel
) -> None:
    assert {file.suffix for file in adapter.iterdir()} <= {".json", ".safetensors", ".md"}
    plain = logits(stories)
    moved = []
    for strength in (0.0, 0.5, 1.0):
        with Adapted("lora", adapter, strength).applied(stories):
            moved.append(float((logits(stories) - plain).norm()))
        assert torch.equal(logits(stories), plain)
    assert moved[0] < 1e-5 < moved[1] < moved[2]
    assert all(p.requires_grad for p in stories.network.parameters())


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_is_afterwards_as_before(family: str, tmp_path: Path) -> None:
    model = families.model(family)
    modules, plain = [name for name, _ in model.network.named_modules()], logits(model)
    LoRA(epochs=2, learning_rate=1e-2).fine_tune(model, OTHER_PROMPTS, tmp_path / "adapter")
    assert torch.equal(logits(model), plain)
    with Adapted("lora", tmp_path / "adapter").applied(model):
        assert float((logits(model) - plain).norm()) > 1e-3
    assert torch.equal(logits(model), plain)
    assert [name for name, _ in model.network.named_modules()] == modules


LORAS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    ("llama", {"target_modules": ["o_proj", "lm_head"], "lora_bias": True}),
    ("gemma3", {"target_modules": ["embed_tokens"]}),  # scales its embeddings, and its head is tied to them
    ("gpt2", {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}),
    ("mixtral", {"target_modules": ["embed_tokens"], "target_parameters": ["mlp.experts.gate_up_proj"]}),
    ("llama", {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"q_proj": 2}, "use_rslora": True}),
]


@pytest.mark.parametrize(("family", "settings"), LORAS)
def test_every_layer_that_peft_adapts_follows_the_strength(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = families.model(family)
    plain = logits(model)
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, **settings)
    get_peft_model(copy.deepcopy(model.network), config).save_pretrained(str(tmp_path))
    own = PeftModel.from_pretrained(copy.deepcopy(model.network), str(tmp_path)).eval()
    whole = logits(lineas.TextModel(own, model.tokenizer))
    moved = {}
    for strength in (1e-5, 1.0, 0.0, 0.5, 1e-5):
        with attached(model.network, tmp_path, strength):
            found = logits(model)
        assert strength not in moved or torch.equal(moved[strength], found)
        moved[strength] = found
    assert torch.equal(logits(model), plain)
    assert torch.equal(moved[0.0], plain)
    assert torch.equal(moved[1.0], whole)
    sizes = [float((moved[strength] - plain).norm()) for strength in (0.0, 1e-5, 0.5)]
    assert sizes[0] < sizes[1] < 0.1 * sizes[2]


REFUSED: list[dict[str, Any]] = [
    {"use_dora": True},
    {"layer_replication": [[0, 2], [0, 2]]},
    {"alora_invocation_tokens": [5, 6]},
    {"kasa_config": {"beta": 1e-4, "gamma": 1e-3}},
    {"modules_to_save": ["lm_head"]},
    {"trainable_token_indices": [1, 2]},
    {"init_lora_weights": "pissa"},
]


@pytest.mark.parametrize("change", REFUSED, ids=[next(iter(change)) for change in REFUSED])
def test_an_adapter_that_has_no_strength_or_cannot_be_taken_off_is_refused_by_what_it_is(
    change: dict[str, Any], adapter: Path, stories: lineas.TextModel, tmp_path: Path
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    (tmp_path / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    plain = logits(stories)
    with (
        pytest.raises(LineasError, match=rf"is not a plain LoRA \({next(iter(change))}="),
        Adapted("lora", tmp_path).applied(stories),
    ):
        pass
    assert torch.equal(logits(stories), plain)


def test_a_network_that_carries_an_adapter_keeps_it(adapter: Path, tmp_path: Path) -> None:
    model = families.model("llama")
    get_peft_model(model.network, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    carrying = logits(model)
    with pytest.raises(LineasError, match="carries an adapter of peft already"), attached(model.network, adapter, 1.0):
        pass
    with pytest.raises(LineasError, match="carries an adapter of peft already"):
        LoRA(epochs=1).fine_tune(model, PROMPTS, tmp_path / "new")
    assert torch.equal(logits(model), carrying)
    with pytest.raises(LineasError, match="finite"), attached(model.network, adapter, float("inf")):
        pass


def test_the_same_seed_gives_the_same_adapter(stories: lineas.TextModel, tmp_path: Path) -> None:
    few = LoRA(epochs=1)
    losses = [few.fine_tune(stories, PROMPTS, tmp_path / str(i), seed=s) for i, s in enumerate((1, 1, 2))]
    files = [(tmp_path / str(i) / "adapter_model.safetensors").read_bytes() for i in range(3)]
    assert losses[0] == losses[1]
    assert files[0] == files[1] != files[2]


def test_what_is_no_plain_lora_or_for_another_network_is_refused_and_leaves_nothing(
    adapter: Path, stories: lineas.TextModel, tmp_path: Path
) -> None:
    modules = [name for name, _ in stories.network.named_modules()]
    other = families.model("llama").network
    with (
        pytest.raises(LineasError, match="does not fit this network"),
        Adapted("lora", adapter).applied(lineas.TextModel(other, stories.tokenizer)),
    ):
        pass
    assert not any("lora" in name for name, _ in other.named_modules())
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    changes: list[tuple[dict, str]] = [
        ({"bias": "all"}, "is not a plain LoRA"),
        ({"use_dora": True}, "is not a plain LoRA"),
        ({"peft_type": "IA3"}, "is not a plain LoRA|does not fit"),
        ({"target_modules": ["q_proj"]}, "is for other modules"),
        ({"target_modules": ["nothing_here"]}, "does not fit this network"),
    ]
    for i, (change, sentence) in enumerate(changes):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        (folder / "adapter_model.safetensors").write_bytes(weights)
        with pytest.raises(LineasError, match=sentence) as caught, Adapted("lora", folder).applied(stories):
            pass
        assert "\n" not in str(caught.value)
        assert [name for name, _ in stories.network.named_modules()] == modules


def test_what_exists_is_not_overwritten_and_what_fails_leaves_nothing(
    stories: lineas.TextModel, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(LineasError, match="exists already"):
        LoRA().fine_tune(stories, PROMPTS, tmp_path / "there")
    with pytest.raises(LineasError, match="no longer finite"):
        LoRA(learning_rate=1e30, epochs=20).fine_tune(stories, PROMPTS, tmp_path / "wild")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert torch.isfinite(logits(stories)).all()


def test_an_interrupted_training_is_no_adapter_and_goes_beside(stories: lineas.TextModel, tmp_path: Path) -> None:
    def press(done: int, steps: int, loss: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with (
        pytest.warns(UserWarning, match="interrupted after 2 of 6 steps"),
        pytest.raises(KeyboardInterrupt, match="so far is in"),
    ):
        LoRA(epochs=6, batch_size=9).fine_tune(stories, OTHER_PROMPTS[:9], tmp_path / "adapter", progress=press)
    assert [place.name for place in tmp_path.iterdir()] == ["adapter.interrupted"]
    with Adapted("half", tmp_path / "adapter.interrupted", 1.0).applied(stories):
        pass
