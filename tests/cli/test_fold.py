"""`lineas fold` on the command line."""

# pyright: reportPrivateImportUsage=false
# (diffusers loads what it exports when that is asked for)

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
    code, out, _ = run(
        capsys, "fold", "model", "--intervention", "calm", "--strength", "0.5", "--out", "folded", "--json", "-"
    )
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
        live = model.network(ids).logits.detach()
    assert float((network(ids).logits.detach() - live).abs().max()) <= 1e-5 * float(live.abs().max())


def test_what_does_not_fold_is_listed_before_anything_is_written(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, *LEARN[:-2], "--method", "caa")
    before = sorted(desk.rglob("*"))
    code, out, err = run(capsys, "fold", "model", "--intervention", "calm", "--out", "folded")
    assert code == 2
    assert "model.layers.2" in out
    assert "no weight makes the output of a LlamaDecoderLayer" in " ".join(out.split())
    assert "1 of 1 sites do not fold into LlamaForCausalLM, nothing was written" in err
    assert sorted(desk.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere", "--intervention", "calm"], "no model could be loaded from 'nowhere'"),
        (["model", "--intervention", "nowhere"], "no intervention at 'nowhere'"),
        (["model", "--intervention", "polite"], "acts on 'model.layers.15.post_attention_layernorm' and 14 other"),
        (
            ["model", "--intervention", "calm", "--strength", "much"],
            "a strength is a number or 'calibrated', not 'much'",
        ),
        (["model", "--intervention", "calm", "--strength", "nan"], "strength must be a finite number, not nan"),
        (["model", "--intervention", "calm", "--dtype", "int3"], "dtype is 'auto', 'checkpoint' or one of"),
        (["model", "--intervention", "calm", "--shard-size", "large"], "a size looks like 8GiB"),
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
    (desk / "mine" / "lineas.json").write_text("[" * 100_000)
    check_refused(capsys, desk, "mine exists already", "fold", "model", "--intervention", "calm", "--out", "mine")
    check_refused(
        capsys,
        desk,
        "mine exists and is not a checkpoint",
        "fold",
        "model",
        "--intervention",
        "calm",
        "--out",
        "mine",
        "--force",
    )


def test_a_full_disk_half_way_leaves_no_half_checkpoint(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lineas.models import checkpoint

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "folded")

    run(capsys, *LEARN)
    monkeypatch.setattr(checkpoint, "save_tokenizer", full)  # the weights are written by then
    check_refused(
        capsys, desk, "no space left on the disk", "fold", "model", "--intervention", "calm", "--out", "folded"
    )


def test_a_folder_that_holds_an_adapter_is_refused_and_nothing_is_written(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model

    base = lineas.load("model", dtype="float32")
    assert isinstance(base, lineas.TextModel)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base.network, config).save_pretrained("lora")
    described = json.loads((desk / "lora" / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = str(desk / "model")
    (desk / "lora" / "adapter_config.json").write_text(json.dumps(described))
    base.tokenizer.save_pretrained("lora")
    arguments = ["lora" if one == "model" else one for one in LEARN]
    assert run(capsys, *arguments)[0] == 0
    check_refused(
        capsys,
        desk,
        "carries the adapter 'default'; merge it first",
        "fold",
        "lora",
        "--intervention",
        "calm",
        "--out",
        "folded",
    )


def test_what_rounding_loses_and_what_is_beyond_what_was_learned_is_said(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, *LEARN)
    code, out, err = run(
        capsys,
        "fold",
        "model",
        "--intervention",
        "calm",
        "--strength",
        "0.00001",
        "--dtype",
        "bfloat16",
        "--out",
        "a",
        "--json",
        "a.json",
    )
    assert code == 0
    lost = json.loads((desk / "a.json").read_text())["lost_to_rounding"]
    assert lost["scales"] == lost["of_scales"] > 0
    counted = f"{lost['scales']} of {lost['of_scales']} scales"
    assert counted in " ".join(out.split())
    assert f"{counted} are lost to bfloat16" in " ".join(err.split())
    code, _, err = run(capsys, "fold", "model", "--intervention", "calm", "--strength", "-1", "--out", "b")
    assert code == 0
    assert "strength -1.0 is outside 0 to 1" in " ".join(err.split())
    code, _, err = run(capsys, "fold", "model", "--intervention", "calm", "--strength", "0", "--out", "c")
    assert code == 0
    assert "there is nothing to fold" in err


def test_a_pipeline_in_half_precision_stays_so_and_plain_diffusers_draws_with_it(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import diffusers
    import pipelines
    from safetensors.torch import load_file

    pipelines.pipeline("stable diffusion 1").to(torch.float16).save_pretrained("half")
    maps = {"unet.conv_norm_out": lineas.AffineMap(torch.full((16,), 1.5), torch.full((16,), 0.5))}
    sites = {"unet.conv_norm_out": lineas.sites.Site("unet.conv_norm_out", axis=1)}
    lineas.Intervention(maps, sites).save("snow")
    assert run(capsys, "fold", "half", "--intervention", "snow", "--out", "folded")[0] == 0
    files = [file for file in Path("folded").glob("*/*.safetensors")]
    assert len(files) == 3
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.float16}
    plain: Any = diffusers.DiffusionPipeline.from_pretrained("folded")
    drawn = plain(["a"], num_inference_steps=1, height=32, width=32, output_type="latent").images
    assert drawn.isfinite().all()
    card = Path("folded", "README.md").read_text()
    assert "library_name: diffusers" in card
    assert "UNet2DConditionModel" in card


def test_the_card_of_a_folded_checkpoint_shows_effect_and_damage(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, *LEARN)[0] == 0
    measured = lineas.Intervention.load("calm").with_facts(
        measurements=[{"strength": 0.0, "rude": 0.25, "perplexity": 20.5}, {"strength": 1.0, "rude": 0.125}],
        calibration={"strength": 1.0, "classifiers": {"rude": "own:judge"}},
    )
    measured.save("calm", overwrite=True)
    assert run(capsys, "fold", "model", "--intervention", "calm", "--out", "folded")[0] == 0
    for card in (Path("calm", "README.md").read_text(), Path("folded", "README.md").read_text()):
        assert "| strength | rude | perplexity |" in card
        assert "| 0 | 0.25 | 20.5 |" in card
        assert "Judges: rude by own:judge." in card


def test_a_prompt_that_begins_with_a_minus_is_a_prompt(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *LEARN)
    code, out, _ = run(
        capsys, "generate", "--intervention", "calm", "--prompt", "-5 degrees", "once", "--max-new-tokens", "2"
    )
    assert code == 0
    assert "-5 degrees" in out
    assert "once" in out
