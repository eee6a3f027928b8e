"""Pictures judged: concept and likeness, by CLIP and DINOv2 from the disk, and by a classifier of a small world."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pipelines
import pytest
import torch
import torch.nn.functional as F
import transformers
from console import check_refused, run
from pipelines import OTHER_PROMPTS, PROMPTS, image_model
from safetensors.torch import load_file, save_file

import lineas
from lineas import LineasError
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.judges import HubJudge, WorldNetwork, judge
from lineas.evaluation.plan import Plan
from lineas.evaluation.variants import Steered, Untouched
from lineas.reporting.plots import plot_effect_and_damage
from lineas.reporting.tables import markdown


class Redness:
    """Sees how red a picture is, and its mean colours."""

    name = "redness"

    def scores(self, pictures: torch.Tensor, concept: str) -> dict[str, list[float]]:
        assert concept == "red"
        return {"concept": pictures[:, 0].mean((1, 2)).tolist()}

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.mean((2, 3)) + 0.1


@pytest.fixture(scope="module")
def striped() -> lineas.Intervention:
    return lineas.learn(
        image_model("stable diffusion 1"), PROMPTS, OTHER_PROMPTS, lineas.LinEAS(steps=5), progress=False
    )


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random CLIP and a random DINOv2, as the hub would hand them out."""
    torch.manual_seed(0)
    clip, dino = (tmp_path_factory.mktemp("models") / name for name in ("clip", "dino"))
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 200, "eos_token_id": 189, "bos_token_id": 188},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(clip)
    see = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(see, pipelines.clip_tokenizer()).save_pretrained(clip)
    transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
        )
    ).save_pretrained(dino)
    transformers.BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(dino)
    return clip, dino


def test_effect_and_faithfulness_are_those_of_the_pictures(
    striped: lineas.Intervention, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = image_model("stable diffusion 1")
    plan = Plan(PROMPTS, concept="red", judge=Redness(), seeds=(0, 1))
    drawn = 0

    def count(n: int) -> None:
        nonlocal drawn
        drawn += n

    found = evaluate(model, [Untouched(), Steered("striped", striped, 1.0)], plan, tmp_path, count)
    untouched, steered = found.rows
    assert drawn == 2 * 2 * len(PROMPTS)
    assert untouched.values["img_score"] == pytest.approx(100)
    shown, alike = [], []
    for seed in (0, 1):
        before = torch.stack(model.generate(PROMPTS, seed * len(PROMPTS), 8, output_type="pt"))
        with lineas.steer(model, striped):
            after = torch.stack(model.generate(PROMPTS, seed * len(PROMPTS), 8, output_type="pt"))
        shown.append(float(after[:, 0].mean()))
        alike.append(float(100 * F.cosine_similarity(*(Redness().features(x) for x in (after, before))).mean()))  # pyright: ignore[reportArgumentType]
    assert steered.by_seed["concept"] == pytest.approx(shown, rel=1e-5)
    assert steered.by_seed["img_score"] == pytest.approx(alike, rel=1e-5)
    assert steered.values["concept"] == pytest.approx(sum(shown) / 2, rel=1e-5)
    monkeypatch.setattr(model, "generate", None)  # once seen, they are not drawn again
    again = evaluate(model, [Untouched(), Steered("striped", striped, 1.0)], plan, tmp_path)
    assert again.rows == found.rows
    (row,) = evaluate(model, [Steered("striped", striped, 0.9)], plan, tmp_path).rows  # another strength is drawn
    assert row.errors.keys() == {"concept", "img_score"}
    assert row.errors["concept"].startswith("TypeError")


def test_the_table_and_the_plot_say_what_was_looked_for(striped: lineas.Intervention, tmp_path: Path) -> None:
    model = image_model("stable diffusion 1")
    systems = [Untouched(), *(Steered("striped", striped, s) for s in (0.5, 1.0))]
    found = evaluate(model, systems, Plan(PROMPTS[:2], concept="red", judge=Redness()))
    table = markdown(found)
    assert "| striped | 0.5 |" in table
    assert "concept 'red' by redness, likeness to the untouched picture (img_score)" in table
    assert plot_effect_and_damage(found.rows, tmp_path / "plot.png", "concept", "img_score").stat().st_size > 10_000


def test_clip_and_dino_are_asked_as_their_authors_do(towers: tuple[Path, Path]) -> None:
    clip, dino = towers
    pictures = torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    asked = judge(f"{clip}+{dino}")
    assert isinstance(asked, HubJudge)
    scores = asked.scores(pictures, "a red star")
    images = [transformers.image_transforms.to_pil_image(picture.numpy(), do_rescale=True) for picture in pictures]  # pyright: ignore[reportAttributeAccessIssue]
    model, processor = transformers.CLIPModel.from_pretrained(clip), transformers.CLIPProcessor.from_pretrained(clip)
    given = processor(text=["a red star", "a picture"], images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model(**given)
        cosines = F.normalize(out.image_embeds, dim=-1) @ F.normalize(out.text_embeds, dim=-1).T
        seen = transformers.AutoModel.from_pretrained(dino)(
            **transformers.AutoImageProcessor.from_pretrained(dino)(images, return_tensors="pt")
        ).last_hidden_state[:, 0]
    assert scores["clip_score"] == pytest.approx((100 * cosines[:, 0]).clamp_min(0).tolist(), abs=0.1)  # 8-bit pictures
    assert scores["concept"] == pytest.approx(out.logits_per_image.softmax(1)[:, 0].tolist(), abs=2e-3)
    torch.testing.assert_close(asked.features(pictures), seen, atol=2e-2, rtol=2e-2)


def test_what_no_judge_knows_is_refused(towers: tuple[Path, Path], tmp_path: Path) -> None:
    save_file(WorldNetwork(2).state_dict(), tmp_path / "judge.safetensors")
    (tmp_path / "judge.json").write_text(json.dumps({"labels": ["star", "moon"]}))
    small = judge(str(tmp_path))
    assert len(small.scores(torch.rand(2, 3, 64, 64), "moon")["concept"]) == 2
    with pytest.raises(LineasError, match="does not know 'sun'; it knows star, moon"):
        evaluate(image_model("flux"), [Untouched()], Plan(["a"], concept="sun", judge=small))
    with pytest.raises(LineasError, match="there is no judge 'nobody'"):
        judge("nobody")
    with pytest.raises(LineasError, match="no judge of pictures could be loaded from 'someone/clip'"):
        judge(f"someone/clip+{towers[1]}").scores(torch.rand(1, 3, 32, 32), "a")


def test_evaluate_on_the_command_line(
    striped: lineas.Intervention, towers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    image_model("stable diffusion 1").save_pretrained("tiny")
    striped.save("striped")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ("evaluate", "tiny", "--intervention", "striped", "--prompts", "prompts.txt", "--limit", "2")
    wanted = ("--shows", "stripes", "--judge", "+".join(map(str, towers)), "--dtype", "float32")
    code, out, err = run(capsys, *command, *wanted, "--strength", "0", "1", "--out", "report")
    assert code == 0, err
    assert "img score" in out
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert [(row["system"], row["strength"]) for row in report["rows"]] == [("untouched", 0.0), ("striped", 1.0)]
    assert set(report["rows"][1]["values"]) == {"concept", "clip_score", "img_score"}
    assert (tmp_path / "report" / "effect-damage.png").exists()
    check_refused(capsys, tmp_path, "--tasks is about texts", *command, *wanted, "--tasks", "mmlu")
    check_refused(capsys, tmp_path, "lineas evaluate --shows TEXT judges its pictures", *command)


@pytest.mark.parametrize("which", [0, 1])
def test_a_judge_that_lacks_weights_is_refused(which: int, towers: tuple[Path, Path], tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(tower, tmp_path / tower.name)) for tower in towers]
    file = folders[which] / "model.safetensors"
    weights = load_file(file)
    del weights[max(weights)]
    save_file(weights, file, {"format": "pt"})
    judge_of_both = HubJudge(*map(str, folders))
    pictures = torch.rand(2, 3, 40, 40)
    with pytest.raises(LineasError, match=f"{folders[which]} lacks the weight"):
        judge_of_both.scores(pictures, "a circle") if which == 0 else judge_of_both.features(pictures)


def test_a_judge_that_cannot_see_is_one_sentence(towers: tuple[Path, Path]) -> None:
    clip, _ = map(str, towers)
    with pytest.raises(LineasError, match="could not judge the pictures"):
        HubJudge(clip, clip).features(torch.rand(2, 3, 40, 40))  # CLIP asks for a text as well


def test_a_strength_that_destroys_the_model_is_noted_and_loses_no_other(striped: lineas.Intervention) -> None:
    model = image_model("stable diffusion 1")
    systems = [Steered("striped", striped, strength) for strength in (1e30, 1.0)]
    with pytest.warns(UserWarning, match="outside 0 to 1"):
        destroyed, steered = evaluate(model, systems, Plan(PROMPTS[:2], concept="red", judge=Redness())).rows
    assert not destroyed.values
    assert "the model is destroyed" in destroyed.errors["concept"]
    assert steered.values["img_score"] < 100
