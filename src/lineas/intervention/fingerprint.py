"""The fingerprint of a checkpoint: a few hundred bytes that identify its weights in any type."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lineas.errors import LineasError, shown
from lineas.modules import is_norm, text_config

PREFIX = "v2:"
"""The beginning of a fingerprint; without it, it is a sha256 of norm weights, which lineas 0.1 wrote."""
SHA256 = re.compile(r"[0-9a-f]{64}")
PROJECTIONS, SAMPLE = 2, 2**14
"""Number of random projections of each kind of weight, and of the entries that are read of a tensor."""
EXACT = 2e-6
"""Largest difference of projections by float32 rounding alone, relative to the root mean square of the weights."""
ROUNDED = 5e-3
"""Largest relative difference if weights were rounded to float16 on the way to bfloat16: a sixteenth of the entries
moves by a unit in the last place, which makes 0.0014 on average."""
HALF_TINY = 2.0**-24
"""The spacing of float16 below its normal numbers."""
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HEADER, ENTRY = struct.Struct("<8s8s?"), struct.Struct("<IHBf")

Grid = Literal["full", "bfloat16", "float16"]
"""The coarsest type that holds all weights of a kind, to which they were rounded at some time."""
GRIDS: tuple[Grid, ...] = ("full", "bfloat16", "float16")
Verdict = Literal["same", "close", "other", "unknown"]
"""Equal up to rounding; the same norms with other weights, or weights that differ by as little as rounding errors;
other norms; not comparable."""


@dataclass(frozen=True)
class Kind:
    """The weights of one name and shape in all blocks together.

    Args:
        count: number of tensors.
        norms: whether they are weights of norms, which distinguish another checkpoint from a fine-tune.
        grid: type that they were rounded to.
        size: root mean square.
        values: projections of the weights rounded to bfloat16; of full weights, then those of the weights rounded to
            float16 before.
    """

    count: int
    norms: bool
    grid: Grid
    size: float
    values: tuple[float, ...]

    def compared(self, other: Kind) -> Verdict:
        """Return how alike two networks' weights of a kind are."""
        pairs = [(mine, its) for mine in self._ways() for its in other._ways()]
        size = max(self.size, other.size)
        if any(_apart(mine, its) <= EXACT * size for mine, its in pairs):
            return "same"
        if not min(_apart(mine, its) for mine, its in pairs) <= ROUNDED * size + HALF_TINY:
            return "other"
        return "same" if {self.grid, other.grid} == {"bfloat16", "float16"} else "close"

    def _ways(self) -> list[tuple[float, ...]]:
        """Return the projections after each way of rounding."""
        return [self.values[start : start + PROJECTIONS] for start in range(0, len(self.values), PROJECTIONS)]


@dataclass(frozen=True)
class Fingerprint:
    """The facts that identify a checkpoint's weights.

    Weights are rounded to bfloat16 and projected on fixed random signs, kind by kind. So a copy in another type has
    the same projections, and a change of weights by a share d of their size moves the projections by about d of it.

    Args:
        norms: first 16 digits of the sha256 of the norms that lineas 0.1 wrote, with weights rounded to bfloat16
            directly, and to float16 before.
        whole: whether every weight could be read; False if some are quantised.
        kinds: kinds of weights by a number made of name and shape.
        names: name of one weight of each kind, by the same number; not stored.
    """

    norms: tuple[str, str]
    whole: bool
    kinds: dict[int, Kind]
    names: dict[int, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, network: nn.Module) -> Fingerprint:
        """Return the fingerprint of a network's weights, without quantised ones; it also reads offloaded weights."""
        weights, whole = _plain_weights(network)
        by_kind: dict[int, list[_Weight]] = {}
        for weight in weights:
            by_kind.setdefault(weight.key, []).append(weight)
        kinds = {key: _kind(some) for key, some in by_kind.items()}
        names = {key: some[0].name for key, some in by_kind.items()}
        directly, halved = (norm_digest(network, way)[:16] for way in (False, True))
        return cls((directly, halved), whole, kinds, names)

    def __str__(self) -> str:
        packed = HEADER.pack(*(bytes.fromhex(one) for one in self.norms), self.whole)
        for key, kind in sorted(self.kinds.items()):
            flags = 2 * GRIDS.index(kind.grid) + kind.norms
            packed += ENTRY.pack(key, min(kind.count, 0xFFFF), flags, kind.size)
            packed += np.array(kind.values, "<f4").tobytes()
        return PREFIX + base64.b64encode(packed).decode()

    @classmethod
    def read(cls, text: str) -> Fingerprint:
        """Return the fingerprint that `str` wrote."""
        try:
            packed = base64.b64decode(text.removeprefix(PREFIX), validate=True)
            directly, halved, whole = HEADER.unpack_from(packed)
            kinds, at = {}, HEADER.size
            while at < len(packed):
                key, count, flags, size = ENTRY.unpack_from(packed, at)
                grid = GRIDS[flags // 2]
                length = PROJECTIONS * (2 if grid == "full" else 1)
                at += ENTRY.size
                values = np.frombuffer(packed, "<f4", length, at)
                at += 4 * length
                kinds[key] = Kind(count, bool(flags % 2), grid, size, tuple(values.tolist()))
        except (ValueError, IndexError, struct.error):
            raise LineasError(
                f"{text[:40]!r} is no fingerprint of a network; it is damaged, or of a newer lineas."
            ) from None
        return cls((directly.hex(), halved.hex()), whole, kinds)

    def compared(self, other: Fingerprint) -> tuple[Verdict, str]:
        """Return how alike two networks are, and a weight that differs; "" for one that this network lacks.

        A network with the same norms and other weights is close: a fine-tune, or one with an adapter.
        """
        result: tuple[Verdict, str] = ("same", "")
        whole = self.whole and other.whole
        for key in (*self.kinds, *(other.kinds.keys() - self.kinds.keys())):
            here, there = self.kinds.get(key), other.kinds.get(key)
            if here is None or there is None or here.count != there.count:
                verdict: Verdict = "close" if whole else "same"
            else:
                verdict = here.compared(there)
                if verdict == "other" and here.norms:
                    return "other", self.names.get(key, "")
            if verdict != "same" and not result[1]:
                result = ("close", self.names.get(key, ""))
        return result


def check(recorded: str) -> None:
    """Refuse a text that is neither a fingerprint nor a sha256 of norms."""
    if recorded.startswith(PREFIX):
        Fingerprint.read(recorded)
    elif not SHA256.fullmatch(recorded):
        raise LineasError(f"{shown(recorded, 40)} is no fingerprint of a network: not {PREFIX}... and no sha256.")


def compared(recorded: str, network: nn.Module) -> tuple[Verdict, str]:
    """Return how alike a network is to that of a fingerprint (or sha256 of norms), and a weight that differs."""
    if recorded.startswith(PREFIX):
        return Fingerprint.of(network).compared(Fingerprint.read(recorded))
    if recorded in (norm_digest(network, False), norm_digest(network, True)):
        return "same", ""
    norms = [_kind([weight]) for weight in _plain_weights(network)[0] if weight.norm]
    if any(kind.grid == "float16" for kind in norms):  # the bits of the digest are lost
        return "unknown", ""
    return "other", ""


def same(one: str, other: str) -> bool:
    """Return whether two recorded fingerprints are of one checkpoint or its fine-tunes."""
    news = [Fingerprint.read(text) for text in (one, other) if text.startswith(PREFIX)]
    if len(news) == 2:
        return news[0].compared(news[1])[0] != "other"
    old = [text for text in (one, other) if not text.startswith(PREFIX)]
    return old[0] == old[1] if len(old) == 2 else old[0][:16] in news[0].norms


def norm_digest(network: nn.Module, halved: bool = False) -> str:
    """Return the sha256 that lineas 0.1 made of the norms' names and weights, rounded to bfloat16.

    Args:
        network: a network; all biases of a denoiser whose norms have no weights (a time step modulates them) count.
        halved: whether to round to float16 before, as in a network that was loaded in float16.
    """
    digest = hashlib.sha256()
    for name, vector in _norms(network):
        weight = vector.detach().to("cpu", torch.float16) if halved else vector.detach().cpu()
        digest.update(name.encode())
        digest.update(weight.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _norms(network: nn.Module) -> list[tuple[str, torch.Tensor]]:
    norms = [(name, _loaded(module, "weight")) for name, module in network.named_modules() if is_norm(module)]
    norms = [(name, vector) for name, vector in norms if not vector.is_meta]
    if norms or not type(network).__module__.startswith("diffusers."):
        return norms
    return [(name, vector.data) for name, vector in network.named_parameters() if name.endswith(".bias")]


@dataclass(frozen=True)
class _Weight:
    name: str
    tensor: torch.Tensor
    norm: bool

    @property
    def key(self) -> int:
        """A number made of the shape and of the name without the block's number."""
        kind = re.sub(r"(?<![^.])\d+(?![^.])", "N", self.name)
        return int.from_bytes(hashlib.sha256(f"{kind}{list(self.tensor.shape)}".encode()).digest()[:4], "little")


def _plain_weights(network: nn.Module) -> tuple[list[_Weight], bool]:
    """Return all weights that are not quantised, each once, and whether these are all weights."""
    tied = _tied(network)
    weights: list[_Weight] = []
    seen: set[int] = set()
    whole = True
    for prefix, module in network.named_modules():
        for own, parameter in module._parameters.items():
            name = f"{prefix}.{own}".removeprefix(".").replace(".base_layer.", ".")  # as without the adapter around it
            if parameter is None or name in tied or id(parameter) in seen or not parameter.numel():
                continue
            seen.add(id(parameter))
            tensor = _loaded(module, own)
            if type(parameter) is nn.Parameter and tensor.dtype in PLAIN and not tensor.is_meta:
                weights.append(_Weight(name, tensor.detach(), own == "weight" and is_norm(module)))
            else:
                whole = False
    if not any(weight.norm for weight in weights) and type(network).__module__.startswith("diffusers."):
        weights = [_Weight(w.name, w.tensor, w.name.endswith(".bias")) for w in weights]
    return weights, whole


def _tied(network: nn.Module) -> set[str]:
    """Return the names of weights that the config ties to others; offloading hides that they are the same."""
    text = text_config(network)
    return set(getattr(network, "_tied_weights_keys", None) or ()) if getattr(text, "tie_word_embeddings", 0) else set()


def _loaded(module: Any, name: str) -> torch.Tensor:
    """Return a module's weight, also one that accelerate has offloaded."""
    weight = module._parameters.get(name)
    weight = getattr(module, name) if weight is None else weight
    hook = getattr(module, "_hf_hook", None)
    maps = [getattr(one, "weights_map", None) for one in getattr(hook, "hooks", [hook])]
    offloaded = next((one for one in maps if one is not None), None)
    return offloaded[name] if weight.is_meta and offloaded is not None else weight


def _kind(weights: list[_Weight]) -> Kind:
    samples = [_sample(weight.tensor) for weight in weights]
    fits = {kind: all(torch.equal(s.to(kind).to(s.dtype), s) for s in samples) for kind in PLAIN[2:]}
    grid: Grid = "bfloat16" if fits[torch.bfloat16] else "float16" if fits[torch.float16] else "full"
    ways = [samples, [sample.half() for sample in samples]] if grid == "full" else [samples]
    entries = sum(sample.numel() for sample in samples)
    size, values = 0.0, []
    for way in ways:
        total = torch.zeros(PROJECTIONS, dtype=torch.float64)
        squares = 0.0
        for weight, sample in zip(weights, way):
            rounded = sample.to(torch.bfloat16).double()
            total += _signs(weight.name) * (_noise()[:, : len(rounded)] @ rounded)
            squares += float(rounded.square().sum())
        values += (total / math.sqrt(entries)).float().tolist()
        size = size or math.sqrt(squares / entries)
    return Kind(len(weights), weights[0].norm, grid, size, tuple(values))


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Return at most SAMPLE entries `[n]` in evenly spread whole rows, on the CPU."""
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() else tensor.reshape(1, 1)
    return rows[:: math.ceil(tensor.numel() / SAMPLE)].reshape(-1)[:SAMPLE].cpu()


@cache
def _noise() -> torch.Tensor:
    """Return fixed random signs, float64 `[PROJECTIONS, SAMPLE]`."""
    bits = np.frombuffer(hashlib.shake_256(b"lineas").digest(PROJECTIONS * SAMPLE // 8), np.uint8)
    return torch.from_numpy(np.unpackbits(bits)).double().view(PROJECTIONS, SAMPLE) * 2 - 1


def _signs(name: str) -> torch.Tensor:
    """Return one random sign for each projection, so that swapped blocks have another fingerprint."""
    digest = hashlib.sha256(name.encode()).digest()
    return torch.tensor([digest[i] % 2 * 2.0 - 1 for i in range(PROJECTIONS)], dtype=torch.float64)


def _apart(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the root mean square of differences; 0 for equal numbers, also if they are not finite."""
    if all(a == b or (a != a and b != b) for a, b in zip(one, other)):
        return 0.0
    apart = math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other)) / PROJECTIONS)
    return math.inf if math.isnan(apart) else apart
