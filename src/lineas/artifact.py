"""The artifact on disk: `intervention.safetensors`, `intervention.json`, a model card; written whole or not at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lineas import card, files
from lineas.errors import LineasError, first_line
from lineas.gates import Gate
from lineas.maps import AffineMap

FORMAT, GATED = 1, 2
"""Of the folder; with gates it is the second, which a lineas that knows none refuses."""
OPERATION = (
    "At strength s, neuron j of each site's activation z becomes (1 + s * (scale[j] - 1)) * z[j] + s * shift[j], in "
    "float32; s = 1 gives scale * z + shift. A site without tensors is the identity. Where MODULE.index is given, "
    "scale and shift hold those neurons only, and the others are scale 1, shift 0. Where one of MODULE.scale and "
    "MODULE.shift is missing, it is 1 or 0 throughout."
)
GATING = (
    " Where MODULE.gate_weight and MODULE.gate_bias are given, each token (or pixel) gets the share "
    "sigmoid(gate_weight . z + gate_bias) of that change, z being its activation before it."
)
TENSORS, DESCRIPTION, CARD = "intervention.safetensors", "intervention.json", "README.md"
SHIPPED = Path(__file__).parent / "data" / "interventions"


def write(
    path: Path,
    description: dict[str, Any],
    maps: Mapping[str, AffineMap],
    overwrite: bool = False,
    gates: Mapping[str, Gate] | None = None,
) -> Path:
    """Write the folder, whole or not at all; other files in it stay."""
    check_free(path, overwrite)
    with files.new_folder(path, others=True) as beside:
        _write_files(beside, description, maps, gates or {})
    return path


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse to write over something that exists, or over a folder that is no artifact even when asked to."""
    files.check_free(path, overwrite, DESCRIPTION, "an intervention")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, AffineMap], dict[str, Gate]]:
    """The description, the maps and the gates of a folder; sites without tensors are left out."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        if description["format"] not in (FORMAT, GATED):
            raise LineasError(
                f"{folder} has artifact format {description['format']}, this lineas reads to {GATED}; upgrade lineas."
            )
        widths = {
            site["module"] if site["output"] == 0 else f"{site['module']}:{site['output']}": site["width"]
            for site in description["sites"]
        }
        description = {"facts": {}, "model": None, **description}
        maps = {name: _unpack(name, width, tensors) for name, width in widths.items()}
        gates = {
            name: Gate(tensors[f"{name}.gate_weight"], tensors[f"{name}.gate_bias"])
            for name in widths
            if f"{name}.gate_weight" in tensors
        }
    except (OSError, LookupError, TypeError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise LineasError(f"{folder} is not a readable intervention: {first_line(error)}.") from None
    return description, {name: map_ for name, map_ in maps.items() if map_ is not None}, gates


def find(source: str | Path, revision: str | None = None) -> Path:
    """The folder of an artifact: as given, shipped with lineas, or downloaded from the hub."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / DESCRIPTION).exists():
            raise LineasError(f"{folder} holds no {DESCRIPTION}, so it is not an intervention.")
        return folder
    shipped = SHIPPED / str(source)
    if (shipped / DESCRIPTION).exists():
        return shipped
    names = ", ".join(sorted(p.name for p in SHIPPED.iterdir())) if SHIPPED.is_dir() else "none"
    sentence = f"no intervention at '{source}': not a folder, not one that ships with lineas ({names})"
    if str(source).count("/") != 1:
        raise LineasError(f"{sentence}.")
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[TENSORS, DESCRIPTION, CARD]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise LineasError(f"{sentence}, and not on the hub ({first_line(error)}).") from None


def push(
    repo_id: str,
    description: dict[str, Any],
    maps: Mapping[str, AffineMap],
    private: bool,
    gates: Mapping[str, Gate] | None = None,
) -> str:
    """Upload the three files as a model repository."""
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), description, maps, gates or {})
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    return str(url)


def _write_files(
    folder: Path, description: dict[str, Any], maps: Mapping[str, AffineMap], gates: Mapping[str, Gate]
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for name, map_ in maps.items():
        tensors.update(_pack(name, map_))
    for name, gate in gates.items():
        tensors[f"{name}.gate_weight"] = gate.weight.detach().float().cpu().contiguous()
        tensors[f"{name}.gate_bias"] = gate.bias.detach().float().cpu()
    version = GATED if gates else FORMAT
    save_file(tensors, folder / TENSORS, metadata={"format": "pt", "lineas": str(version)})
    (folder / TENSORS).chmod(0o644)  # safetensors makes it readable by its owner alone
    full = {"format": version, "operation": OPERATION + (GATING if gates else ""), **description}
    (folder / DESCRIPTION).write_text(json.dumps(full, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card.model_card(full), encoding="utf-8")


def _pack(name: str, map_: AffineMap) -> dict[str, torch.Tensor]:
    """Tensors of one site: those that move something, for the touched neurons where they are under half, else all."""
    scale, shift = map_.scale.detach().float().cpu(), map_.shift.detach().float().cpu()
    index = ((scale != 1) | (shift != 0)).nonzero().squeeze(1)
    tensors: dict[str, torch.Tensor] = {}
    if bool((scale != 1).any()):
        tensors["scale"] = scale
    if bool((shift != 0).any()):
        tensors["shift"] = shift
    if tensors and 2 * len(index) < map_.width:
        tensors = {kind: values[index] for kind, values in tensors.items()}
        tensors["index"] = index.to(torch.int32)
    return {f"{name}.{kind}": values.clone(memory_format=torch.contiguous_format) for kind, values in tensors.items()}


def _unpack(name: str, width: int, tensors: Mapping[str, torch.Tensor]) -> AffineMap | None:
    """The map of one site, None where nothing is stored for it."""
    index = tensors.get(f"{name}.index")
    where = slice(None) if index is None else index.long()
    full = AffineMap.identity(width)
    stored = {kind: tensors[f"{name}.{kind}"] for kind in ("scale", "shift") if f"{name}.{kind}" in tensors}
    for kind, values in stored.items():
        neurons = width if index is None else len(index)
        if len(values) != neurons:
            raise LineasError(f"the intervention's {kind} at {name!r} has {len(values)} neurons, not {neurons}.")
        getattr(full, kind)[where] = values
        if not bool(values.isfinite().all()):
            raise LineasError(
                f"the intervention's {kind} at {name!r} is not finite, so it is of no use; learn it anew."
            )
    return full if stored else None
