"""The artifact on disk: `intervention.safetensors`, `intervention.json`, a model card; written whole or not at all."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load, save_file

from lineas.errors import LineasError, first_line, shown
from lineas.files import strict_json, writing
from lineas.files.ownership import FolderKind
from lineas.files.steady_reads import steadily
from lineas.intervention import model_card, schema
from lineas.intervention.gate import Gate
from lineas.intervention.maps import AffineMap
from lineas.printable import in_a_line, shortened

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
SHIPPED = Path(__file__).parents[1] / "data" / "interventions"


def write(
    path: Path,
    described: dict[str, Any],
    maps: Mapping[str, AffineMap],
    overwrite: bool = False,
    gates: Mapping[str, Gate] | None = None,
) -> Path:
    """Write the folder, whole or not at all; other files in it stay.

    Raises:
        LineasError: when something is there, or for what `read` would refuse; then nothing is written.
    """
    content = packed(described, maps, gates or {})
    with writing.new_folder(path, KIND, overwrite) as beside:
        _write_files(beside, *content)
    return path


def _unmarked(folder: Path) -> list[str]:
    """The files of an artifact that lineas 0.1.0 wrote, which is known by what its JSON says."""
    try:
        described = strict_json.loads(strict_json.read_bytes(folder / DESCRIPTION))
    except LineasError:
        return []
    if not isinstance(described, dict) or not {"format", "operation", "sites", "support"} <= described.keys():
        return []
    names = [name for name in (TENSORS, DESCRIPTION) if (folder / name).is_file()]
    return [*names, CARD] if model_card.is_ours(folder / CARD) else names


KIND = FolderKind("an intervention", "intervention", DESCRIPTION, _unmarked)


def read(folder: Path) -> schema.Parts:
    """Return what a folder holds, checked as docs/reference/artifact.md says.

    Raises:
        LineasError: when it is not such a folder, saying what is wrong.
    """
    try:
        return steadily(folder, _read)
    except LineasError as error:
        raise LineasError(f"{folder} is not a readable intervention: {error}") from None


def _read(folder: Path) -> schema.Parts:
    described = strict_json.loads(strict_json.read_bytes(folder / DESCRIPTION))
    outline = schema.outline(described)
    tensors, written = _tensors(folder / TENSORS, outline.most_bytes)
    if written is not None and described.get("written", written) != written:
        raise LineasError(f"its {TENSORS} was written together with another {DESCRIPTION}; write it anew.")
    return schema.filled(outline, tensors)


def _tensors(file: Path, most: int) -> tuple[dict[str, torch.Tensor], str | None]:
    """The tensors of a file of at most so many bytes, and what it says together with which JSON it was written."""
    content = strict_json.read_bytes(file, most)
    try:
        tensors = load(content)
        header = strict_json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, header.get("__metadata__", {}).get("written")
    except Exception as error:  # of safetensors or torch, whatever they make of it
        raise LineasError(f"{file.name} is damaged, or no safetensors ({first_line(error)}).") from None


def find(source: str | PathLike[str], revision: str | None = None) -> Path:
    """The folder of an artifact: as given, shipped with lineas, or downloaded from the hub."""
    if not isinstance(source, (str, PathLike)) or not str(source):
        raise LineasError(f"an intervention is a folder, a name or a hub id, not {shown(source)}.")
    if revision is not None and not isinstance(revision, str):
        raise LineasError(f"a revision of the hub is a text, not {shown(revision)}.")
    folder = Path(source)
    try:
        is_folder = folder.is_dir()
    except (OSError, ValueError):  # too long for a name, or with a null byte
        raise LineasError(f"{shown(str(source))} is not a name that a folder can have.") from None
    if is_folder:
        if not (folder / DESCRIPTION).exists():
            raise LineasError(f"{folder} holds no {DESCRIPTION}, so it is not an intervention.")
        return folder
    shipped = SHIPPED / str(source)
    if (shipped / DESCRIPTION).exists():
        return shipped
    names = ", ".join(sorted(p.name for p in SHIPPED.iterdir())) if SHIPPED.is_dir() else "none"
    asked = in_a_line(shortened(str(source), 200))
    sentence = f"no intervention at '{asked}': not a folder, not one that ships with lineas ({names})"
    if str(source).count("/") != 1:
        raise LineasError(f"{sentence}.")
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[TENSORS, DESCRIPTION, CARD]))
    except Exception as error:  # of the hub's client, and of what it goes through
        raise LineasError(f"{sentence}, and not on the hub ({first_line(error)}).") from None


def push(
    repo_id: str,
    described: dict[str, Any],
    maps: Mapping[str, AffineMap],
    private: bool,
    gates: Mapping[str, Gate] | None = None,
) -> str:
    """Upload the three files as a model repository."""
    content = packed(described, maps, gates or {})
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), *content)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    return str(url)


def packed(
    described: dict[str, Any], maps: Mapping[str, AffineMap], gates: Mapping[str, Gate]
) -> tuple[str, str, dict[str, torch.Tensor]]:
    """Return the JSON, the model card and the tensors of an artifact, once they are what `read` takes.

    Args:
        described: what the JSON says beside its format and operation.
        maps: by site name.
        gates: by site name.

    Raises:
        LineasError: naming what `read` would refuse.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, map_ in maps.items():
        tensors.update(_pack(name, map_))
    for name, gate in gates.items():
        tensors[f"{name}.gate_weight"] = gate.weight.detach().float().cpu().contiguous()
        tensors[f"{name}.gate_bias"] = gate.bias.detach().float().cpu()
    version = schema.GATED if gates else schema.FORMAT
    full = {"format": version, "operation": OPERATION + (GATING if gates else ""), **described}
    try:
        text = strict_json.dumps(full)
        if len(text.encode()) > strict_json.MOST_BYTES:
            raise LineasError(f"its JSON has more than {strict_json.MOST_BYTES:,} bytes.")
        schema.check(strict_json.loads(text), tensors)
        text = strict_json.dumps({**full, "written": _written(text, tensors)})
    except LineasError as error:
        raise LineasError(f"this intervention cannot be saved, as it could not be read again: {error}") from None
    return text + "\n", model_card.model_card(full), tensors


def _written(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return what both files say, so that one of them beside another's is noticed."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def _write_files(folder: Path, text: str, model_card: str, tensors: dict[str, torch.Tensor]) -> None:
    described = strict_json.loads(text)
    metadata = {"format": "pt", "lineas": str(described["format"]), "written": described["written"]}
    save_file(tensors, folder / TENSORS, metadata=metadata)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    (folder / CARD).write_text(model_card, encoding="utf-8")


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
