"""Fingerprint: which checkpoint a network's weights are, in some hundred bytes, whatever type they are stored in."""

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
from lineas.modules import is_norm

PREFIX = "v2:"
"""Before a fingerprint of this form; without it, it is the sha256 of norm weights that lineas 0.1 wrote."""
SHA256 = re.compile(r"[0-9a-f]{64}")
PROJECTIONS, SAMPLE = 2, 2**14
"""Random projections of every kind of weight, and the entries of a tensor that are read for them."""
EXACT = 2e-6
"""By which projections differ where float32 alone rounded them, relative to the root mean square of the weights."""
ROUNDED = 5e-3
"""By which they differ where weights were rounded to float16 on the way to bfloat16: a sixteenth of the entries moves
by a unit in the last place, which makes 0.0014 on average."""
HALF_TINY = 2.0**-24
"""The spacing of float16 below its normal numbers."""
PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HEADER, ENTRY = struct.Struct("<8s8s?"), struct.Struct("<IHBf")

Grid = Literal["full", "bfloat16", "float16"]
"""The coarsest type that holds all weights of a kind: what they were rounded to at some time."""
GRIDS: tuple[Grid, ...] = ("full", "bfloat16", "float16")
Verdict = Literal["same", "close", "other", "unknown"]
"""Equal as far as rounding lets one see; the same norms with other weights, or weights that differ by no more than
rounding errors but not because of them; other norms; or not to be compared."""


@dataclass(frozen=True)
class Kind:
    """The weights of one name and shape in all blocks together.

    Args:
        count: how many tensors they are.
        norms: whether they are weights of norms, by which checkpoints are told apart from fine-tunes.
        grid: what they were rounded to.
        size: their root mean square.
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
        """The projections after each way of rounding."""
        return [self.values[start : start + PROJECTIONS] for start in range(0, len(self.values), PROJECTIONS)]


@dataclass(frozen=True)
class Fingerprint:
    """The facts by which a checkpoint's weights are known.

    Norms and other weights are projected on fixed random signs, kind by kind, after they were rounded to bfloat16: a
    copy in another type has the same projections, and a change of weights by a share d of their size moves the
    projections by about d of it.

    Args:
        norms: the first 16 digits of the sha256 that lineas 0.1 made of the norms, with weights rounded to bfloat16
            directly and by way of float16.
        whole: whether every weight was there to be read; not where some are quantised.
        kinds: by a number made of name and shape.
        names: by the same number, a weight of that kind; not stored.
    """

    norms: tuple[str, str]
    whole: bool
    kinds: dict[int, Kind]
    names: dict[int, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, network: nn.Module) -> Fingerprint:
        """Read a network's weights; those that are elsewhere until they are used count, quantised ones do not."""
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
        """Read what `str` wrote.

        Raises:
            LineasError: when it is no such thing.
        """
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
        """Return how alike two networks are, and a weight that differs; "" where it is one that this network lacks.

        Other weights make a network a close one as long as the norms are not other ones: a fine-tune, or one that
        carries an adapter.

        Args:
            other: the one that was learned on, or another that was.
        """
        found: tuple[Verdict, str] = ("same", "")
        whole = self.whole and other.whole
        for key in (*self.kinds, *(other.kinds.keys() - self.kinds.keys())):
            here, there = self.kinds.get(key), other.kinds.get(key)
            if here is None or there is None or here.count != there.count:
                verdict: Verdict = "close" if whole else "same"
            else:
                verdict = here.compared(there)
                if verdict == "other" and here.norms:
                    return "other", self.names.get(key, "")
            if verdict != "same" and not found[1]:
                found = ("close", self.names.get(key, ""))
        return found


def check(recorded: str) -> None:
    """Refuse what no lineas recorded of a network.

    Raises:
        LineasError: when it is neither a fingerprint nor a sha256.
    """
    if recorded.startswith(PREFIX):
        Fingerprint.read(recorded)
    elif not SHA256.fullmatch(recorded):
        raise LineasError(f"{shown(recorded, 40)} is no fingerprint of a network: not {PREFIX}... and no sha256.")


def compared(recorded: str, network: nn.Module) -> tuple[Verdict, str]:
    """Return how alike a network is to the one of a recorded fingerprint, and a weight that differs.

    Args:
        recorded: a fingerprint, or the sha256 of norms that lineas 0.1 wrote.
        network: the network at hand.
    """
    if recorded.startswith(PREFIX):
        return Fingerprint.of(network).compared(Fingerprint.read(recorded))
    if recorded in (norm_digest(network, False), norm_digest(network, True)):
        return "same", ""
    norms = [_kind([weight]) for weight in _plain_weights(network)[0] if weight.norm]
    if any(kind.grid == "float16" for kind in norms):  # the bits that the digest was made of are gone
        return "unknown", ""
    return "other", ""


def same(one: str, other: str) -> bool:
    """Return whether two recorded fingerprints are of one checkpoint, fine-tunes among it."""
    news = [Fingerprint.read(text) for text in (one, other) if text.startswith(PREFIX)]
    if len(news) == 2:
        return news[0].compared(news[1])[0] != "other"
    old = [text for text in (one, other) if not text.startswith(PREFIX)]
    return old[0] == old[1] if len(old) == 2 else old[0][:16] in news[0].norms


def norm_digest(network: nn.Module, halved: bool = False) -> str:
    """Return the sha256 that lineas 0.1 made of the norms' names and weights, rounded to bfloat16.

    Args:
        network: in a denoiser whose norms have no weights (a time step modulates them), all biases count.
        halved: round to float16 before, as a network that was loaded in float16 is.
    """
    digest = hashlib.sha256()
    for name, vector in _norms(network):
        weight = vector.detach().to("cpu", torch.float16) if halved else vector.detach().cpu()
        digest.update(name.encode())
        digest.update(weight.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _norms(network: nn.Module) -> list[tuple[str, torch.Tensor]]:
    known = [(name, _there(module, "weight")) for name, module in network.named_modules() if is_norm(module)]
    known = [(name, vector) for name, vector in known if not vector.is_meta]
    if known or not type(network).__module__.startswith("diffusers."):
        return known
    return [(name, vector.data) for name, vector in network.named_parameters() if name.endswith(".bias")]


@dataclass(frozen=True)
class _Weight:
    name: str
    tensor: torch.Tensor
    norm: bool

    @property
    def key(self) -> int:
        """A number for its name without the block's, and its shape."""
        kind = re.sub(r"(?<![^.])\d+(?![^.])", "N", self.name)
        return int.from_bytes(hashlib.sha256(f"{kind}{list(self.tensor.shape)}".encode()).digest()[:4], "little")


def _plain_weights(network: nn.Module) -> tuple[list[_Weight], bool]:
    """All weights that are numbers as they are, each once, and whether these are all."""
    tied = _tied(network)
    found: list[_Weight] = []
    seen: set[int] = set()
    whole = True
    for prefix, module in network.named_modules():
        for own, parameter in module._parameters.items():
            name = f"{prefix}.{own}".removeprefix(".").replace(".base_layer.", ".")  # as without the adapter around it
            if parameter is None or name in tied or id(parameter) in seen or not parameter.numel():
                continue
            seen.add(id(parameter))
            tensor = _there(module, own)
            if type(parameter) is nn.Parameter and tensor.dtype in PLAIN and not tensor.is_meta:
                found.append(_Weight(name, tensor.detach(), own == "weight" and is_norm(module)))
            else:
                whole = False
    if not any(weight.norm for weight in found) and type(network).__module__.startswith("diffusers."):
        found = [_Weight(w.name, w.tensor, w.name.endswith(".bias")) for w in found]
    return found, whole


def _tied(network: nn.Module) -> set[str]:
    """Names of weights that are others' by the network's config, also where each is elsewhere until it is used."""
    config: Any = getattr(network, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return set(getattr(network, "_tied_weights_keys", None) or ()) if getattr(text, "tie_word_embeddings", 0) else set()


def _there(module: Any, name: str) -> torch.Tensor:
    """A module's weight, also where accelerate keeps it elsewhere until it is used."""
    weight = module._parameters.get(name)
    weight = getattr(module, name) if weight is None else weight
    hook = getattr(module, "_hf_hook", None)
    maps = [getattr(one, "weights_map", None) for one in getattr(hook, "hooks", [hook])]
    elsewhere = next((one for one in maps if one is not None), None)
    return elsewhere[name] if weight.is_meta and elsewhere is not None else weight


def _kind(weights: list[_Weight]) -> Kind:
    """Weights of one name and shape as one."""
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
    """At most SAMPLE entries, `[n]`, in whole rows that are evenly spread, on the CPU."""
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() else tensor.reshape(1, 1)
    return rows[:: math.ceil(tensor.numel() / SAMPLE)].reshape(-1)[:SAMPLE].cpu()


@cache
def _noise() -> torch.Tensor:
    """Random signs that are always the same, float64 `[PROJECTIONS, SAMPLE]`."""
    bits = np.frombuffer(hashlib.shake_256(b"lineas").digest(PROJECTIONS * SAMPLE // 8), np.uint8)
    return torch.from_numpy(np.unpackbits(bits)).double().view(PROJECTIONS, SAMPLE) * 2 - 1


def _signs(name: str) -> torch.Tensor:
    """A random sign a projection for one tensor, so that blocks which trade places are told apart."""
    digest = hashlib.sha256(name.encode()).digest()
    return torch.tensor([digest[i] % 2 * 2.0 - 1 for i in range(PROJECTIONS)], dtype=torch.float64)


def _apart(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The root mean square of differences; 0 of what is equal, also where it is not finite."""
    if all(a == b or (a != a and b != b) for a, b in zip(one, other)):
        return 0.0
    apart = math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other)) / PROJECTIONS)
    return math.inf if math.isnan(apart) else apart
