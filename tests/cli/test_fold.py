"""`lineas fold` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from console import LEARN, check_refused, run
from transformers import AutoModelForCausalLM, AutoTokenizer

import lineas


def test_fold_writes_a_checkpoint_that_is_steered_by_itself(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN)
    code, out, _ = run(capsys, "fold", "model", "calm", "--strength", "0.5", "--out", "folded", "--json", "-")
    assert code == 0
    told = json.loads(out)
    assert (told["out"], told["strength"], told["architecture"]) == ("folded", 0.5, "LlamaForCausalLM")
    assert {"config.json", "model.safetensors", "tokenizer.json", "lineas.json", "README.md"} <= {
        p.name for p in Path("folded").iterdir()
    }
    network: Any = AutoModelForCausalLM.from_pretrained("folded", dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained("folded")("The dog ran", return_tensors="pt").input_ids
    model = lineas.load("model", dtype="float32")
    with lineas.steer(model, lineas.Intervention.load("calm"), 0.5):
        live = model.network(ids).logits  # type: ignore[operator]
    assert float((network(ids).logits - live).abs().max()) <= 1e-5 * float(live.abs().max())


def test_what_does_not_fold_is_listed_before_anything_is_written(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, *LEARN[:-2], "--method", "caa")
    before = sorted(desk.rglob("*"))
    code, out, err = run(capsys, "fold", "model", "calm", "--out", "folded")
    assert code == 2
    assert "model.layers.2" in out
    assert "no weight makes the output of a LlamaDecoderLayer" in " ".join(out.split())
    assert "1 of 1 sites do not fold into LlamaForCausalLM, nothing was written" in err
    assert sorted(desk.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "calm"], "no model could be loaded from 'nowhere'"),
        (["model", "nowhere"], "no intervention at 'nowhere'"),
        (["model", "polite"], "acts on 'model.layers.15.post_attention_layernorm' and 14 other"),
        (["model", "calm", "--strength", "much"], "a strength is a number or 'calibrated', not 'much'"),
        (["model", "calm", "--strength", "nan"], "strength must be a finite number, not nan"),
        (["model", "calm", "--dtype", "int3"], "dtype is 'auto', 'checkpoint' or one of"),
        (["model", "calm", "--shard-size", "large"], "a size looks like 8GiB"),
    ],
)
def test_mistakes_are_one_sentence(
    desk: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    run(capsys, *LEARN)
    check_refused(capsys, desk, sentence, "fold", *arguments, "--out", "folded")


def test_a_folder_that_is_there_is_kept(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN)
    (desk / "mine").mkdir()
    (desk / "mine" / "letter.txt").write_text("dear")
    check_refused(capsys, desk, "mine exists already", "fold", "model", "calm", "--out", "mine")
    check_refused(
        capsys, desk, "mine exists and is not a checkpoint", "fold", "model", "calm", "--out", "mine", "--force"
    )


def test_a_full_disk_half_way_leaves_no_half_checkpoint(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lineas.models import checkpoint

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "folded")

    run(capsys, *LEARN)
    monkeypatch.setattr(checkpoint, "save_tokenizer", full)  # the weights are written by then
    check_refused(capsys, desk, "no space left on the disk", "fold", "model", "calm", "--out", "folded")
