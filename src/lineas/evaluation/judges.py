"""Judges of pictures: how much a picture shows a concept, and features by which two pictures are compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from lineas.checks import as_texts
from lineas.errors import LineasError, reading
from lineas.models.digests import describe_part
from lineas.models.loader_report import load_weights
from lineas.models.loading import JUDGE

CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dinov2-small"
BATCH = 32


class PictureJudge(Protocol):
    """What looks at pictures, float `[n, 3, h, w]` from 0 to 1."""

    @property
    def name(self) -> str: ...

    def scores(self, pictures: torch.Tensor, concept: str) -> dict[str, list[float]]:
        """By measure, one number a picture: `concept`, the probability that it shows it, and others."""
        ...

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """`[n, d]`, to be compared by their cosine."""
        ...


def judge(name: str) -> PictureJudge:
    """A judge by name.

    Args:
        name: a folder with `judge.safetensors`, such as that of the embedded image model; or "CLIP+DINO": two hub ids
            or folders of models of transformers, "clip" standing for the usual two.

    Raises:
        LineasError: when there is none.
    """
    if (Path(name) / JUDGE).is_file():
        return WorldJudge(Path(name))
    clip, _, dino = (f"{CLIP}+{DINO}" if name == "clip" else name).partition("+")
    if not dino:
        raise LineasError(
            f"there is no judge '{name}': name 'clip', two models as CLIP+DINO, or a folder with {JUDGE}."
        )
    return HubJudge(clip, dino)


@dataclass(frozen=True)
class HubJudge:
    """CLIP for the concept, DINOv2 for what else a picture shows (Hessel et al. 2021, arXiv 2104.08718; Oquab et al.
    2023, arXiv 2304.07193).

    `clip_score` is 100 times the cosine of picture and concept, at least 0; `concept` the probability of the concept
    against "a picture", by CLIP's own temperature.

    Args:
        clip: hub id or folder.
        dino: hub id or folder.
    """

    clip: str = CLIP
    dino: str = DINO

    @property
    def name(self) -> str:
        """Both models."""
        return f"{self.clip}+{self.dino}"

    def identity(self) -> dict[str, Any]:
        """Return what its answers depend on, as JSON: the bytes of both models, and how pictures are prepared."""
        (clip, seen), (dino, alike) = self._clip, self._dino
        prepared = [seen.image_processor, seen.tokenizer, alike]
        return {"clip": describe_part(clip), "dino": describe_part(dino), "prepared": describe_part(prepared)}

    @torch.no_grad()
    def scores(self, pictures: torch.Tensor, concept: str) -> dict[str, list[float]]:
        """`concept` and `clip_score`."""
        as_texts("the concepts", [concept], "concepts")
        model, processor = self._clip
        with reading(f"{self.clip} could not judge the pictures"):
            told = processor.tokenizer([concept, "a picture"], padding=True, truncation=True, return_tensors="pt")
            text = F.normalize(_embedding(model.get_text_features(**told)), dim=-1)  # [2, d]
            seen = torch.cat([self._seen(part) for part in pictures.split(BATCH)])  # [n, d]
        cosines = seen @ text.T
        chances = (cosines * model.logit_scale.exp()).softmax(-1)
        return {"concept": chances[:, 0].tolist(), "clip_score": (100 * cosines[:, 0]).clamp_min(0).tolist()}

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """The class token of DINOv2, `[n, d]`."""
        model, processor = self._dino
        parts = []
        for part in pictures.split(BATCH):
            with reading(f"{self.dino} could not judge the pictures"):
                given = processor(images=list(part), return_tensors="pt", do_rescale=False)
                parts.append(model(**given).last_hidden_state[:, 0].float())
        return torch.cat(parts)

    def _seen(self, pictures: torch.Tensor) -> torch.Tensor:
        model, processor = self._clip
        given = processor.image_processor(images=list(pictures), return_tensors="pt", do_rescale=False)
        return F.normalize(_embedding(model.get_image_features(**given)), dim=-1)

    @cached_property
    def _clip(self) -> tuple[Any, Any]:
        from transformers import CLIPModel, CLIPProcessor

        with reading(f"no judge of pictures could be loaded from '{self.clip}'"):
            network = load_weights(CLIPModel, self.clip, ignore_mismatched_sizes=True)
            return network, CLIPProcessor.from_pretrained(self.clip)

    @cached_property
    def _dino(self) -> tuple[Any, Any]:
        from transformers import AutoImageProcessor, AutoModel

        with reading(f"no judge of pictures could be loaded from '{self.dino}'"):
            network = load_weights(AutoModel, self.dino, r"(^|\.)pooler\.", ignore_mismatched_sizes=True)
            return network, AutoImageProcessor.from_pretrained(self.dino)


def _embedding(result: Any) -> torch.Tensor:
    """The projected features, which transformers 4 gives as a tensor and 5 within an output."""
    return result if isinstance(result, torch.Tensor) else result.pooler_output


# ---- the embedded model's world

LABELS = "judge.json"


class WorldNetwork(nn.Module):
    """A small convolutional network: what a picture shows, and features.

    Args:
        labels: how many things it tells.
    """

    def __init__(self, labels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((3, 24, 48, 96)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.features = nn.Linear(96 * 4 * 4, 128)
        self.head = nn.Linear(128, labels)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features `[n, 128]` and logits `[n, labels]` of pictures from -1 to 1, `[n, 3, 64, 64]`."""
        features = self.features(F.adaptive_avg_pool2d(self.body(x), 4).flatten(1))
        return features, self.head(F.silu(features))


@dataclass(frozen=True)
class WorldJudge:
    """The classifier that was trained on the world of the embedded image model.

    Args:
        folder: with its weights and its labels.
    """

    folder: Path

    @property
    def name(self) -> str:
        """The folder's."""
        return f"{self.folder.name} (a classifier of its world)"

    def identity(self) -> dict[str, Any]:
        """Return what its answers depend on, as JSON holds it."""
        return {"labels": self.labels, "network": describe_part(self._network)}

    @torch.no_grad()
    def scores(self, pictures: torch.Tensor, concept: str) -> dict[str, list[float]]:
        """`concept`, one of its labels.

        Raises:
            LineasError: for another concept, naming the labels.
        """
        labels = self.labels
        if concept not in labels:
            raise LineasError(f"this judge does not know '{concept}'; it knows {', '.join(labels)}.")
        found = [self._network(part * 2 - 1)[1] for part in pictures.float().split(BATCH)]
        return {"concept": torch.cat(found)[:, labels.index(concept)].sigmoid().tolist()}

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """`[n, 128]`."""
        return torch.cat([self._network(part * 2 - 1)[0] for part in pictures.float().split(BATCH)])

    @cached_property
    def labels(self) -> list[str]:
        """What it tells."""
        with reading(f"{self.folder / LABELS} does not say what this judge tells"):
            return list(map(str, json.loads((self.folder / LABELS).read_text(encoding="utf-8"))["labels"]))

    @cached_property
    def _network(self) -> WorldNetwork:
        from safetensors.torch import load_file

        network = WorldNetwork(len(self.labels))
        with reading(f"{self.folder / JUDGE} is no judge of {len(self.labels)} labels"):
            network.load_state_dict(load_file(self.folder / JUDGE))
        return network.eval().requires_grad_(False)
