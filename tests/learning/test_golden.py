"""The numbers of the reference implementation published with the paper, reproduced through `lineas.learn`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import lineas
from lineas.models.loading import load_text


@pytest.fixture(scope="module")
def stories260k(shared: Path) -> lineas.TextModel:
    """The real network that the reference was run on, in float32."""
    return load_text(shared / "models" / "stories260k", dtype="float32")


@pytest.mark.parametrize("name", ["sgd", "sgd_sparse", "adam_sparse"])
@pytest.mark.filterwarnings("ignore:.*were cut at 128 tokens")
def test_every_scale_shift_and_cost_of_the_reference(shared: Path, stories260k: lineas.TextModel, name: str) -> None:
    run = json.loads((shared / "golden" / f"{name}.json").read_text())
    reference = load_file(shared / "golden" / f"{name}.safetensors")
    method = lineas.LinEAS(
        steps=run["steps"],
        optimizer=run["optimizer"].lower(),
        learning_rate=run["learning_rate"],
        gamma=1.0,
        lambda_1=run["lambda_1"],
        lambda_g=run["lambda_g"],
    )
    learned = lineas.learn(
        stories260k, run["source_texts"], run["target_texts"], method, sites=run["sites"], progress=False
    )
    assert {f"{site}.{part}" for site in learned.maps for part in ("scale", "shift")} == set(reference)
    for site, map_ in learned.maps.items():
        assert float((map_.scale - reference[f"{site}.scale"]).abs().max()) <= 1e-6
        assert float((map_.shift - reference[f"{site}.shift"]).abs().max()) <= 1e-6
    assert learned.facts["cost"] == pytest.approx(run["losses"], abs=1e-4)


def test_the_tokens_are_the_references(shared: Path, stories260k: lineas.TextModel) -> None:
    run = json.loads((shared / "golden" / "sgd.json").read_text())
    texts, ids = run["source_texts"], run["source_ids"]
    assert [stories260k.tokenizer(text).input_ids[:128] for text in texts] == [one[:128] for one in ids]
