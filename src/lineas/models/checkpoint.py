"""A checkpoint on disk: weights, config and tokenizer in the format of transformers, with provenance and model card."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lineas.errors import LineasError, reading
from lineas.files import strict_json
from lineas.files.ownership import FolderKind, files_in
from lineas.intervention.model_card import effect_and_damage
from lineas.models.loader_report import check_report, holds_pickles, no_pickles
from lineas.modules import is_norm
from lineas.printable import as_code, as_label, front_matter, in_markdown

PROVENANCE, CARD = "lineas.json", "README.md"


def write_provenance(folder: Path, provenance: dict[str, Any] | None, library: str = "transformers") -> None:
    """Write a folded model's provenance and model card; nothing for other models."""
    if provenance:
        (folder / PROVENANCE).write_text(strict_json.dumps(provenance) + "\n", encoding="utf-8")
        (folder / CARD).write_text(card(provenance, library), encoding="utf-8")


def _unmarked(folder: Path) -> list[str]:
    """Return the files of a checkpoint that lineas 0.1.0 folded, which only its provenance shows."""
    try:
        if strict_json.loads(strict_json.read_bytes(folder / PROVENANCE)).get("made_by") != "lineas.fold":
            return []
    except (LineasError, AttributeError):
        return []
    return [name for name in files_in(folder) if OF_CHECKPOINTS.fullmatch(name)]


OF_CHECKPOINTS = re.compile(
    r"((unet|vae|transformer|scheduler|(text_encoder|tokenizer)(_[23])?)/)?"
    r"((generation_|tokenizer_|scheduler_)?config\.json|(model|diffusion_pytorch_model)[-0-9a-z]*\.safetensors"
    r"|\w+\.safetensors\.index\.json|tokenizer\.json|(special_tokens|added_tokens)\w*\.json|chat_template\.jinja"
    r"|vocab\.json|merges\.txt|spiece\.model|model_index\.json|drawing\.json|lineas\.json|README\.md)"
)
"""The names of the files of a checkpoint or a pipeline."""
KIND = FolderKind("a checkpoint", "checkpoint", "config.json", _unmarked)


def skeleton(config: Any, weight_of: Callable[[str], torch.Tensor | None]) -> nn.Module:
    """Return a network with no weights but its norms' `weight_of(name)`, `[d]` or None, which identify a checkpoint."""
    with torch.device("meta"):
        try:
            network: nn.Module = AutoModelForCausalLM.from_config(config)
        except ValueError:
            raise LineasError(f"{type(config).__name__} is of no causal language model, so it is not served.") from None
    for name, module in network.named_modules():
        weight = weight_of(name) if is_norm(module) else None
        if weight is not None:
            module.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return network


def skeleton_of(folder: Path) -> nn.Module:
    """Return the skeleton of a checkpoint on disk; of its weights only those of norms are read."""
    if holds_pickles(folder):
        raise LineasError(no_pickles(folder))
    failure = f"{folder} is no checkpoint that can be read"
    with reading(failure):
        shards = _shards(folder)
        if not (folder / "config.json").is_file() or not shards:
            raise LineasError(f"{folder} is no checkpoint: it lacks a config.json, or weights in *.safetensors.")
        config = AutoConfig.from_pretrained(folder)
    where: dict[str, Path] = {}
    shapes: dict[str, list[int]] = {}
    for shard in shards:
        with reading(f"{shard} cannot be read"), safe_open(shard, "pt") as file:
            where |= dict.fromkeys(file.keys(), shard)
            shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118

    def weight_of(name: str) -> torch.Tensor | None:
        if (key := f"{name}.weight") not in where:
            return None
        with safe_open(where[key], "pt") as file:
            return file.get_tensor(key)

    with reading(failure):
        network = skeleton(config, weight_of)
    _check_shapes(type(network), config, shapes, folder)
    return network


def _shards(folder: Path) -> list[Path]:
    """Return the weights files that transformers reads; a folder may hold the same weights twice."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    return sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})


def _check_shapes(kind: Any, config: Any, shapes: dict[str, list[int]], folder: Path) -> None:
    """Compare a checkpoint's names and shapes with its network, unless it is quantised or accelerate is missing."""
    if getattr(config, "quantization_config", None) or find_spec("accelerate") is None:
        return
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    options = {"config": copy.deepcopy(config), "state_dict": weights, "device_map": {"": "meta"}}
    with reading(f"{folder} is no checkpoint that can be read"):
        network, report = kind.from_pretrained(None, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    check_report(network, report, str(folder))


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer's files so that transformers 4 and 5 can read them."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":  # the name in transformers 5
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")


def card(provenance: dict[str, Any], library: str = "transformers") -> str:
    """Return the README.md of a folded model from its provenance, with the library that loads the model."""
    base = provenance["base"]
    summary = (
        f"The weights of {as_code(base)} with an intervention of lineas folded into them at strength "
        f"{as_label(provenance['strength'])}, at {len(provenance['sites'])} sites. It is a plain "
        f"{provenance['architecture']} and runs without lineas. `{PROVENANCE}` says what was folded, where, and "
        "how it was learned."
    )
    head = front_matter(library, base if base.count("/") == 1 else None)
    title = f"# {in_markdown(Path(base).name)}, steered"
    return "\n".join([*head, "", title, "", summary, "", *effect_and_damage(provenance.get("intervention", {}))])
