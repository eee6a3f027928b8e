"""Judges of pictures: the probability that a picture shows a concept, and features to compare two pictures."""

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
LABELS = "judge.json"
BATCH = 32


class PictureJudge(Protocol):
    """A judge of pictures, float `[n, 3, h, w]` from 0 to 1."""

    @property
    def name(self) -> str: ...

    def scores(self, pictures: torch.Tensor, concept: str) -> dict[str, list[float]]:
        """Return n numbers for each measure, among them `concept`, the probability that a picture shows the concept."""
        ...

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return features, `[n, d]`, which are compared by their cosine."""
        ...


def judge(name: str) -> PictureJudge:
    """Return the judge of a name.

    The name is a folder with `judge.safetensors`, such as that of the embedded image model; or hub ids or folders of
    two models of transformers as "CLIP+DINO"; or "clip" for the two default ones.
    """
    if (Path(name) / JUDGE).is_file():
        return WorldJudge(Path(name))
    clip, _, dino = (f"{CLIP}+{DINO}" if name == "clip" else name).partition("+")
    if not dino:
        raise LineasError(
            f"there is no judge '{name}'; give 'clip', two models as CLIP+DINO, or a folder with {JUDGE}."
        )
    return HubJudge(clip, dino)


@dataclass(frozen=True)
class HubJudge:
    """A judge of two models: CLIP for the concept, DINOv2 for the features.

    `clip_score` is 100 times the cosine of picture and concept, at least 0 (Hessel et al. 2021, arXiv 2104.08718).
    `concept` is the probability of the concept against "a picture", at CLIP's own temperature. The features are those
    of Oquab et al. 2023 (arXiv 2304.07193). Each model is a hub id or a folder.
    """

    clip: str = CLIP
    dino: str = DINO

    @property
    def name(self) -> str:
        return f"{self.clip}+{self.dino}"

    def identity(self) -> dict[str, Any]:
        """Return everything that the answers depend on, as JSON: both models and the preparation of pictures."""
        (clip, clip_processor), (dino, dino_processor) = self._clip, self._dino
        processors = [clip_processor.image_processor, clip_processor.tokenizer, dino_processor]
        prepared = [describe_part(processor) for processor in processors]
        return {"clip": describe_part(clip), "dino": describe_part(dino), "prepared": prepared}

    @torch.no_grad()
    def scores(self, pictures: torch.Tensor, concept: str) -> dict[str, list[float]]:
        """Return `concept` and `clip_score` of each picture."""
        as_texts("the concepts", [concept], "concepts")
        model, processor = self._clip
        with reading(f"{self.clip} could not judge the pictures"):
            tokens = processor.tokenizer([concept, "a picture"], padding=True, truncation=True, return_tensors="pt")
            text = F.normalize(_embedding(model.get_text_features(**tokens)), dim=-1)  # [2, d]
            image = torch.cat([self._image_embedding(part) for part in pictures.split(BATCH)])  # [n, d]
        cosines = image @ text.T
        chances = (cosines * model.logit_scale.exp()).softmax(-1)
        return {"concept": chances[:, 0].tolist(), "clip_score": (100 * cosines[:, 0]).clamp_min(0).tolist()}

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the class tokens of DINOv2, `[n, d]`."""
        model, processor = self._dino
        parts = []
        with reading(f"{self.dino} could not judge the pictures"):
            for part in pictures.split(BATCH):
                pixels = processor(images=list(part), return_tensors="pt", do_rescale=False)
                parts.append(model(**pixels).last_hidden_state[:, 0].float())
        return torch.cat(parts)

    def _image_embedding(self, pictures: torch.Tensor) -> torch.Tensor:
        model, processor = self._clip
        pixels = processor.image_processor(images=list(pictures), return_tensors="pt", do_rescale=False)
        return F.normalize(_embedding(model.get_image_features(**pixels)), dim=-1)

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
    """Return the projected features; transformers 4 returns a tensor, transformers 5 an output that holds it."""
    return result if isinstance(result, torch.Tensor) else result.pooler_output


class WorldNetwork(nn.Module):
    """A small convolutional network that gives features and a logit for each label."""

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
        """Return features `[n, 128]` and logits `[n, labels]` of pictures `[n, 3, 64, 64]` from -1 to 1."""
        features = self.features(F.adaptive_avg_pool2d(self.body(x), 4).flatten(1))
        return features, self.head(F.silu(features))


@dataclass(frozen=True)
class WorldJudge:
    """The judge that was trained on the pictures of the embedded image model, in a folder with weights and labels."""

    folder: Path

    @property
    def name(self) -> str:
        return f"{self.folder.name} (a classifier of its world)"

    def identity(self) -> dict[str, Any]:
        """Return everything that the answers depend on, as JSON."""
        return {"labels": self.labels, "network": describe_part(self._network)}

    @torch.no_grad()
    def scores(self, pictures: torch.Tensor, concept: str) -> dict[str, list[float]]:
        """Return `concept` of each picture, which must be one of the labels."""
        if concept not in self.labels:
            raise LineasError(f"this judge does not know '{concept}'; it knows {', '.join(self.labels)}.")
        logits = [self._network(part * 2 - 1)[1] for part in pictures.float().split(BATCH)]
        return {"concept": torch.cat(logits)[:, self.labels.index(concept)].sigmoid().tolist()}

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return features, `[n, 128]`."""
        return torch.cat([self._network(part * 2 - 1)[0] for part in pictures.float().split(BATCH)])

    @cached_property
    def labels(self) -> list[str]:
        """The concepts that the judge knows."""
        with reading(f"{self.folder / LABELS} holds no list of labels"):
            return list(map(str, json.loads((self.folder / LABELS).read_text(encoding="utf-8"))["labels"]))

    @cached_property
    def _network(self) -> WorldNetwork:
        from safetensors.torch import load_file

        network = WorldNetwork(len(self.labels))
        with reading(f"{self.folder / JUDGE} is no judge of {len(self.labels)} labels"):
            network.load_state_dict(load_file(self.folder / JUDGE))
        return network.eval().requires_grad_(False)
