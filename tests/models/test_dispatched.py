"""Networks that accelerate has spread, some weights out of memory: learned on and steered as if they were whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from accelerate import dispatch_model

import lineas
from lineas import LineasError
from lineas.models import loading

PARTS = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]


def dispatched(where: str, folder: Path) -> lineas.TextModel:
    """A tiny Llama whose second block lies on a device or on disk."""
    places: dict[str, Any] = {**dict.fromkeys(PARTS, "cpu"), "model.layers.1": where}
    cpu: Any = "cpu"  # which accelerate takes and does not say
    network = dispatch_model(
        families.network("llama"),
        places,
        main_device=cpu,
        offload_dir=str(folder),
        force_hooks=True,
    )
    return lineas.TextModel(network, families.tokenizer())


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_it_is_learned_and_steered_like_a_whole_one(where: str, tmp_path: Path) -> None:
    spread, whole = dispatched(where, tmp_path), families.model("llama")
    for method in (lineas.MeanAcT(), lineas.LinEAS(steps=4)):
        learned, expected = (
            lineas.learn(model, families.PROMPTS, families.OTHER_PROMPTS, method, progress=False)
            for model in (spread, whole)
        )
        for name, map_ in expected.maps.items():
            assert torch.equal(learned.maps[name].scale, map_.scale)
            assert torch.equal(learned.maps[name].shift, map_.shift)
        with lineas.steer(whole, learned), lineas.steer(spread, expected):  # each on the other: the same base
            assert spread.generate(families.PROMPTS, temperature=0) == whole.generate(families.PROMPTS, temperature=0)


def test_what_is_not_in_memory_is_not_folded(tmp_path: Path) -> None:
    spread = dispatched("disk", tmp_path)
    learned = lineas.learn(spread, families.PROMPTS, families.OTHER_PROMPTS, lineas.MeanAcT(), progress=False)
    with pytest.raises(LineasError, match="not in memory; load it whole"):
        lineas.fold(spread, learned)


def test_auto_lets_accelerate_choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = families.model("llama")
    whole.save_pretrained(tmp_path / "llama")
    monkeypatch.setenv("LINEAS_DEVICE", "auto")
    asked: list[str | None] = []
    load = loading._load_network

    def spy(where: str, device_map: str | None, **options: Any) -> Any:
        asked.append(device_map)
        return load(where, device_map=device_map, **options)

    monkeypatch.setattr(loading, "_load_network", spy)
    spread = lineas.load(tmp_path / "llama", dtype="float32")
    assert spread.generate(families.PROMPTS, temperature=0) == whole.generate(families.PROMPTS, temperature=0)  # pyright: ignore[reportCallIssue]
    lineas.load(tmp_path / "llama", dtype="float32", device="cpu")
    assert asked == ["auto", None]
    with pytest.raises(LineasError, match="a pipeline is not spread"):
        lineas.load("shapes")


@pytest.mark.parametrize("device", ["cuda:7", "gpu"])
def test_a_device_that_is_not_there_is_told(device: str) -> None:
    with pytest.raises(LineasError, match=f"there is no device '{device}' here"):
        lineas.load(device=device)
