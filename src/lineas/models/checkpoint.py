"""A checkpoint on disk: weights, config and tokenizer as transformers reads them, and where they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from lineas import files

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
    files.check_free(folder, overwrite, "config.json", "a checkpoint")


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
    lines = ["---", "library_name: transformers", "tags: [lineas, steering]"]
    if base.count("/") == 1:
        lines.append(f"base_model: {base}")
    return "\n".join(
        [
            *lines,
            "---",
            "",
            f"# {Path(base).name}, steered",
            "",
            f"The weights of `{base}` with an intervention of lineas folded into them at strength "
            f"{provenance['strength']:g}, at {len(provenance['sites'])} sites. It is a plain "
            f"{provenance['architecture']} and runs without lineas. `{PROVENANCE}` says what was folded, where, and "
            "how it was learned.",
            "",
        ]
    )
