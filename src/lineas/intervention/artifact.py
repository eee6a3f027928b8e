"""The artifact on disk: a folder of `intervention.safetensors`, `intervention.json` and a model card."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load, save_file

from lineas.errors import LineasError, first_line, shown
from lineas.files import strict_json, writing
from lineas.files.ownership import FolderKind
from lineas.files.steady_reads import steadily
from lineas.intervention import model_card, schema
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


def write(path: Path, parts: schema.Parts, overwrite: bool = False) -> Path:
    """Write the folder completely or not at all, and return its path; other files in it stay."""
    content = packed(parts)
    with writing.new_folder(path, KIND, overwrite) as temporary:
        _write_files(temporary, *content)
    return path


def _unmarked(folder: Path) -> list[str]:
    """Return the files of an artifact that lineas 0.1.0 wrote; the keys of its JSON identify it."""
    try:
        description = strict_json.loads(strict_json.read_bytes(folder / DESCRIPTION))
    except LineasError:
        return []
    if not isinstance(description, dict) or not {"format", "operation", "sites", "support"} <= description.keys():
        return []
    names = [name for name in (TENSORS, DESCRIPTION) if (folder / name).is_file()]
    return [*names, CARD] if model_card.is_ours(folder / CARD) else names


KIND = FolderKind("an intervention", "intervention", DESCRIPTION, _unmarked)


def read(folder: Path) -> schema.Parts:
    """Return the content of a folder, checked as docs/reference/artifact.md says; an error says what is wrong."""
    try:
        return steadily(folder, _read)
    except LineasError as error:
        raise LineasError(f"{folder} is not a readable intervention: {error}") from None


def _read(folder: Path) -> schema.Parts:
    description = strict_json.loads(strict_json.read_bytes(folder / DESCRIPTION))
    outline = schema.outline(description)
    tensors, digest = _tensors(folder / TENSORS, outline.most_bytes)
    if digest is not None and description.get("written", digest) != digest:
        raise LineasError(f"its {TENSORS} was written together with another {DESCRIPTION}; write it anew.")
    return schema.filled(outline, tensors)


def _tensors(file: Path, most: int) -> tuple[dict[str, torch.Tensor], str | None]:
    """Return the tensors of a file of at most `most` bytes, and the digest that its JSON has too, if it has one."""
    content = strict_json.read_bytes(file, most)
    try:
        tensors = load(content)
        header = strict_json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, header.get("__metadata__", {}).get("written")
    except Exception as error:  # of safetensors or torch
        raise LineasError(f"{file.name} is damaged, or no safetensors ({first_line(error)}).") from None


def find(source: str | PathLike[str], revision: str | None = None) -> Path:
    """Return the folder of an artifact: as given, shipped with lineas, or downloaded from the hub.

    Args:
        source: folder, name of an artifact that ships with lineas, or hub id.
        revision: commit on the hub; None for the newest.
    """
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
    name = in_a_line(shortened(str(source), 200))
    sentence = f"no intervention at '{name}': not a folder, not one that ships with lineas ({names})"
    if str(source).count("/") != 1:
        raise LineasError(f"{sentence}.")
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=[TENSORS, DESCRIPTION, CARD]))
    except Exception as error:  # of the hub's client or the network
        raise LineasError(f"{sentence}, and not on the hub ({first_line(error)}).") from None


def push(repo_id: str, parts: schema.Parts, private: bool) -> str:
    """Upload the three files as a model repository, and return its address."""
    content = packed(parts)
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), *content)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    return str(url)


def packed(parts: schema.Parts) -> tuple[str, str, dict[str, torch.Tensor]]:
    """Return the JSON, the model card and the tensors of an artifact; an error says why `read` would refuse them."""
    tensors: dict[str, torch.Tensor] = {}
    for name, map_ in parts.maps.items():
        tensors.update(_pack(name, map_))
    for name, gate in parts.gates.items():
        tensors[f"{name}.gate_weight"] = gate.weight.detach().float().cpu().contiguous()
        tensors[f"{name}.gate_bias"] = gate.bias.detach().float().cpu()
    version, operation = (schema.GATED, OPERATION + GATING) if parts.gates else (schema.FORMAT, OPERATION)
    try:
        full = {"format": version, "operation": operation, **schema.description(parts)}
        text = strict_json.dumps(full)
        if len(text.encode()) > strict_json.MOST_BYTES:
            raise LineasError(f"its JSON has more than {strict_json.MOST_BYTES:,} bytes.")
        schema.check(strict_json.loads(text), tensors)
        text = strict_json.dumps({**full, "written": _digest(text, tensors)})
    except LineasError as error:
        raise LineasError(f"this intervention cannot be saved, as it could not be read again: {error}") from None
    return text + "\n", model_card.model_card(full), tensors


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the digest that both files get, so that a pair of files from two artifacts is noticed."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def _write_files(folder: Path, text: str, model_card: str, tensors: dict[str, torch.Tensor]) -> None:
    description = strict_json.loads(text)
    metadata = {"format": "pt", "lineas": str(description["format"]), "written": description["written"]}
    save_file(tensors, folder / TENSORS, metadata=metadata)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    (folder / CARD).write_text(model_card, encoding="utf-8")


def _pack(name: str, map_: AffineMap) -> dict[str, torch.Tensor]:
    """Return the tensors of one site that change something: of the touched neurons if they are under half, else all."""
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
