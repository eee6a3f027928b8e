"""Loading: what is damaged, incomplete or a pickle is refused in one sentence that names it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pipelines
import pytest
import torch
import transformers
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import lineas
from lineas import LineasError
from lineas.models import checkpoint
from lineas.modules import input_device

WEIGHTS = "model.safetensors"
DOWN = "model.layers.0.mlp.down_proj"
UNET = "diffusion_pytorch_model.safetensors"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk, with its tokenizer."""
    folder = tmp_path_factory.mktemp("whole") / "llama"
    families.model("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion on disk."""
    folder = tmp_path_factory.mktemp("whole") / "pipeline"
    pipelines.pipeline("stable diffusion 1").save_pretrained(folder)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "llama"))


def weights(change: Callable[[dict[str, torch.Tensor]], Any], file: str = WEIGHTS) -> Change:
    """Change the tensors of a file."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file, {"format": "pt"})

    return apply


def config(**fields: Any) -> Change:
    """Change the config."""

    def apply(folder: Path) -> None:
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**told, **fields}))

    return apply


def written(file: str, content: bytes) -> Change:
    """Write a file of the folder anew."""
    return lambda folder: (folder / file).write_bytes(content)


def keep_norms(tensors: dict[str, torch.Tensor]) -> None:
    for key in [key for key in tensors if "norm" not in key]:
        del tensors[key]


def without_shard(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


OTHERS: dict[str, tuple[Change, str]] = {
    "one missing": (weights(lambda w: w.pop(f"{DOWN}.weight")), f"lacks the weight {DOWN}.weight"),
    "only norms": (weights(keep_norms), "lacks .* weights, such as"),
    "another shape": (config(intermediate_size=40), r"with shape \[32, 48\].* asks for \[32, 40\]"),
    "a block less": (config(num_hidden_layers=1), "weights, such as model.layers.1.input_layernorm.weight, that"),
    "a bias more": (weights(lambda w: w.update({f"{DOWN}.bias": torch.ones(32)})), f"the weight {DOWN}.bias that"),
}


@pytest.mark.parametrize("case", list(OTHERS))
def test_weights_that_are_not_the_networks_are_refused_whatever_the_console_shows(
    case: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    change, sentence = OTHERS[case]
    change(copied)
    with pytest.raises(LineasError, match=sentence):
        lineas.load(copied)
    with pytest.raises(LineasError, match=sentence):
        checkpoint.skeleton_of(copied)


def test_tied_weights_masks_of_old_and_heads_of_other_tasks_are_no_fault(copied: Path) -> None:
    config(tie_word_embeddings=True)(copied)
    weights(
        lambda w: [w.pop("lm_head.weight"), w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})]
    )(copied)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lineas.load(copied)
        checkpoint.skeleton_of(copied)
    weights(lambda w: w.update({"score.weight": torch.ones(2, 32), "vision_tower.layers.0.weight": torch.ones(2)}))(
        copied
    )
    with pytest.warns(UserWarning, match="does not use, of score, vision_tower; they are left out"):
        lineas.load(copied)


DAMAGED: dict[str, tuple[Change, str]] = {
    "weights cut": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:3000]),
        "model.safetensors is damaged",
    ),
    "weights empty": (written(WEIGHTS, b""), "model.safetensors is damaged"),
    "weights text": (written(WEIGHTS, b"no weights at all"), "model.safetensors is damaged"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no file named model.safetensors"),
    "a shard missing": (without_shard, "model-00002-of-00002.safetensors"),
    "config a list": (written("config.json", b"[1]"), "no model could be loaded"),
    "config deep": (written("config.json", b"[" * 100_000), "no model could be loaded"),
    "negative size": (config(hidden_size=-32), "negative"),
    "size in words": (config(hidden_size="many"), "hidden_size"),
    "no such type": (config(dtype="float7", torch_dtype="float7"), "float7"),
    "no such activation": (config(hidden_act="nope"), "nope"),
    "no heads": (config(num_attention_heads=0), "no model could be loaded"),
    "tokenizer a list": (written("tokenizer.json", b"[]"), "no model could be loaded"),
    "tokenizer settings a list": (written("tokenizer_config.json", b"[]"), "no model could be loaded"),
    "generation settings a list": (written("generation_config.json", b"[]"), "no model could be loaded"),
}


@pytest.mark.parametrize("case", list(DAMAGED))
def test_a_damaged_checkpoint_is_one_sentence_that_names_it(case: str, copied: Path) -> None:
    change, sentence = DAMAGED[case]
    change(copied)
    with pytest.raises(LineasError, match=sentence) as refused:
        lineas.load(copied)
    assert str(copied) in str(refused.value)
    assert refused.value.__cause__ is not None


@pytest.mark.parametrize("name", ["a b/c d", "a/b/c", "no\0name", "x" * 5000, ""])
def test_a_name_that_no_model_can_have_is_one_sentence(name: str) -> None:
    with pytest.raises(LineasError, match=r"no model could be loaded from .*Give a hub id \(OWNER/NAME\)"):
        lineas.load(name)


def test_pickles_are_not_read(copied: Path, drawing: Path, tmp_path: Path) -> None:
    torch.save(load_file(copied / WEIGHTS), copied / "pytorch_model.bin")
    (copied / WEIGHTS).unlink()
    for read in (lineas.load, checkpoint.skeleton_of):
        with pytest.raises(LineasError, match=r"has weights in a pickle .* convert it once"):
            read(copied)
    pipeline = Path(shutil.copytree(drawing, tmp_path / "pipeline"))
    torch.save({}, pipeline / "unet" / "diffusion_pytorch_model.bin")
    (pipeline / "unet" / UNET).unlink()
    with pytest.raises(LineasError, match="unet has weights in a pickle"):
        lineas.load(pipeline)


def test_an_adapters_folder_is_its_base_with_it_or_says_what_it_is(whole: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(whole)
    get_peft_model(network, config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(LineasError, match=f"adapter of peft for {whole}, and has no tokenizer"):
        lineas.load(tmp_path / "adapter")
    families.tokenizer().save_pretrained(tmp_path / "adapter")
    loaded = lineas.load(tmp_path / "adapter")
    assert any("lora_A" in name for name, _ in loaded.network.named_parameters())


PARTS: dict[str, tuple[Change, str]] = {
    "unet": (weights(lambda w: w.pop("conv_in.bias"), f"unet/{UNET}"), "unet lacks the weight conv_in.bias"),
    "unet with more": (
        weights(lambda w: w.update({"x.weight": torch.ones(1)}), f"unet/{UNET}"),
        "the weight x.weight that",
    ),
    "unet of another shape": (weights(lambda w: w.update({"conv_in.bias": torch.ones(1)}), f"unet/{UNET}"), "shape"),
    "vae": (weights(lambda w: w.pop("decoder.conv_in.bias"), f"vae/{UNET}"), "vae lacks the weight"),
    "text encoder": (weights(lambda w: w.pop(min(w)), f"text_encoder/{WEIGHTS}"), "text_encoder lacks the weight"),
    "text encoder cut": (written(f"text_encoder/{WEIGHTS}", b"x" * 50), "text_encoder/model.safetensors is damaged"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "lacks its folder tokenizer"),
    "index a list": (written("model_index.json", b"[]"), "no pipeline could be loaded"),
    "index of no class": (written("model_index.json", b'{"_class_name": "Nope"}'), "no pipeline could be loaded"),
    "index is no JSON": (written("model_index.json", b"{"), "no pipeline could be loaded"),
    "settings a list": (written("drawing.json", b"[]"), "drawing.json"),
    "settings of others": (written("drawing.json", b'{"pencil": 1}'), "drawing.json"),
    "settings in words": (written("drawing.json", b'{"steps": "few"}'), "drawing.json"),
}


@pytest.mark.parametrize("case", list(PARTS))
def test_every_part_of_a_pipeline_is_held_against_its_weights(case: str, drawing: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(drawing, tmp_path / "pipeline"))
    change, sentence = PARTS[case]
    change(folder)
    with pytest.raises(LineasError, match=sentence) as refused:
        lineas.load(folder)
    assert str(folder) in str(refused.value)


def test_a_device_without_numbers_is_none(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINEAS_DEVICE", "meta")
    with pytest.raises(LineasError, match="no device 'meta'"):
        lineas.load(whole)


def test_a_network_that_is_wholly_offloaded_is_learned_on_and_continues() -> None:
    model, plain = families.model("llama"), families.model("llama")
    cpu_offload(model.network)
    assert model.device == torch.device("cpu")
    assert model.generate(["Tom"], temperature=0) == plain.generate(["Tom"], temperature=0)
    learned = lineas.learn(model, families.PROMPTS, families.OTHER_PROMPTS, lineas.MeanAcT(), progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learned.check_fits(plain.network)
    assert input_device(nn.Identity()) == torch.device("cpu")
