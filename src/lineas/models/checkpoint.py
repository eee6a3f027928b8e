"""A checkpoint on disk: weights, config and tokenizer as transformers reads them, and where they came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lineas import files
from lineas.errors import LineasError, first_line
from lineas.printable import as_code, as_label, front_matter, in_markdown
from lineas.sites import is_norm

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
    check_free(folder, overwrite)
    with files.new_folder(folder) as beside:
        network.save_pretrained(beside, max_shard_size=shard)  # type: ignore[operator]
        save_tokenizer(beside, tokenizer)
        if provenance:
            text = json.dumps(provenance, indent=1, ensure_ascii=False) + "\n"
            (beside / PROVENANCE).write_text(text, encoding="utf-8")
            (beside / CARD).write_text(_card(provenance), encoding="utf-8")
    return folder


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse to write over something that exists, or over what is no checkpoint even when asked to."""
    files.check_free(folder, overwrite, ("config.json", "model_index.json"), "a checkpoint")


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
            module.weight = nn.Parameter(weight.detach(), requires_grad=False)  # type: ignore[assignment]
    return network


def skeleton_of(folder: Path) -> nn.Module:
    """The skeleton of a checkpoint on disk, without reading its other weights.

    Raises:
        LineasError: when the folder holds no checkpoint in safetensors.
    """
    shards = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not shards:
        raise LineasError(f"{folder} is no checkpoint: it lacks a config.json, or weights in *.safetensors.")
    try:
        config = AutoConfig.from_pretrained(folder)
        where = {key: shard for shard in shards for key in safe_open(shard, "pt").keys()}  # noqa: SIM118
    except (OSError, ValueError) as error:
        raise LineasError(f"{folder} is no checkpoint that can be read: {first_line(error)}.") from None

    def weight_of(name: str) -> torch.Tensor | None:
        key = f"{name}.weight"
        if key not in where:
            return None
        with safe_open(where[key], "pt") as file:
            return file.get_tensor(key)

    return skeleton(config, weight_of)


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer's files so that transformers 4 reads what 5 wrote."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    if described.get("tokenizer_class") == "TokenizersBackend":  # what 5 calls it
        described["tokenizer_class"] = "PreTrainedTokenizerFast"
        file.write_text(json.dumps(described, indent=1, ensure_ascii=False), encoding="utf-8")


def _card(provenance: dict[str, Any]) -> str:
    base = provenance["base"]
    return "\n".join(
        [
            *front_matter("transformers", base if base.count("/") == 1 else None),
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
