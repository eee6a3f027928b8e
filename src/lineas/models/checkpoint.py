"""A checkpoint on disk: weights, config and tokenizer as transformers reads them, and where they came from."""

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
from lineas.files import strict_json, writing
from lineas.files.ownership import FolderKind, files_in
from lineas.models.loader_report import check_report, holds_pickles, no_pickles
from lineas.models.read_back import verify_written
from lineas.modules import is_norm
from lineas.printable import as_code, as_label, front_matter, in_markdown

PROVENANCE, CARD = "lineas.json", "README.md"


def save(
    folder: Path,
    network: nn.Module,
    tokenizer: Any,
    provenance: dict[str, Any] | None,
    overwrite: bool,
    shard: str | int,
) -> Path:
    """Write all files, or none."""
    if not hasattr(network, "save_pretrained"):
        raise LineasError(f"a {type(network).__name__} cannot write itself; give a network of transformers.")
    with writing.new_folder(folder, KIND, overwrite) as beside:
        network.save_pretrained(beside, max_shard_size=shard)  # pyright: ignore[reportCallIssue]
        verify_written(beside, network)
        save_tokenizer(beside, tokenizer)
        if provenance:
            text = strict_json.dumps(provenance) + "\n"
            (beside / PROVENANCE).write_text(text, encoding="utf-8")
            (beside / CARD).write_text(card(provenance), encoding="utf-8")
    return folder


def _unmarked(folder: Path) -> list[str]:
    """The files of a checkpoint that lineas 0.1.0 folded, which is known by what its provenance says."""
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
"""Names of the files that a checkpoint or a pipeline consists of."""
KIND = FolderKind("a checkpoint", "checkpoint", "config.json", _unmarked)


def skeleton(config: Any, weight_of: Callable[[str], torch.Tensor | None]) -> nn.Module:
    """A network as transformers builds it, without weights but those of its norms, which say which checkpoint it is.

    Args:
        config: the checkpoint's, as transformers reads it.
        weight_of: from a norm's dotted name to its weight `[d]`; None where there is none.

    Raises:
        LineasError: when transformers knows no causal language model of that config.
    """
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
    """The skeleton of a checkpoint on disk, without reading its other weights.

    Raises:
        LineasError: when the folder holds no checkpoint in safetensors, or its weights are not those of its network.
    """
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
        key = f"{name}.weight"
        if key not in where:
            return None
        with safe_open(where[key], "pt") as file:
            return file.get_tensor(key)

    with reading(failure):
        made = skeleton(config, weight_of)
    _check_shapes(type(made), config, shapes, folder)
    return made


def _shards(folder: Path) -> list[Path]:
    """The files of weights that transformers reads; some folders hold the same weights under other names as well."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    return sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})


def _check_shapes(kind: Any, config: Any, shapes: dict[str, list[int]], folder: Path) -> None:
    """Hold the names and shapes of a checkpoint against its network, as transformers does that loads it.

    What is quantised is left to who reads it, and so is everything where accelerate is not installed.
    """
    if getattr(config, "quantization_config", None) or find_spec("accelerate") is None:
        return
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    options = {"config": copy.deepcopy(config), "state_dict": weights, "device_map": {"": "meta"}}
    with reading(f"{folder} is no checkpoint that can be read"):
        made, report = kind.from_pretrained(None, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    check_report(made, report, str(folder))


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer's files so that transformers 4 reads what 5 wrote."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    if described.get("tokenizer_class") == "TokenizersBackend":  # what 5 calls it
        described["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(described, indent=1, ensure_ascii=False), encoding="utf-8")


def card(provenance: dict[str, Any], library: str = "transformers") -> str:
    """The README.md of a folded model, for the library that reads it."""
    base = provenance["base"]
    return "\n".join(
        [
            *front_matter(library, base if base.count("/") == 1 else None),
            "",
            f"# {in_markdown(Path(base).name)}, steered",
            "",
            f"The weights of {as_code(base)} with an intervention of lineas folded into them at strength "
            f"{as_label(provenance['strength'])}, at {len(provenance['sites'])} sites. It is a plain "
            f"{provenance['architecture']} and runs without lineas. `{PROVENANCE}` says what was folded, where, and "
            "how it was learned.",
            "",
        ]
    )
