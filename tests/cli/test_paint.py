"""`lineas paint`, and learning and folding image models on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pipelines
import pytest
from console import check_refused, run
from PIL import Image

from lineas.files.ownership import MARK

LEARN = ("learn", "tiny", "--source", "plain.txt", "--target", "striped.txt", "--out", "striped", "--steps", "3")
PAINT = ("paint", "tiny", "--intervention", "striped", "--prompt", "a red star", "--out", "made", "--size", "32")
FLOAT = ("--dtype", "float32")


def picture(path: str | Path) -> Image.Image:
    """The whole picture of a file, which is closed."""
    with Image.open(path) as opened:
        return opened.copy()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline on disk that draws in two steps."""
    model = pipelines.image_model("stable diffusion 1")
    return model.save_pretrained(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def studio(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with prompts and an intervention learned from them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.txt").write_text("\n".join(pipelines.PROMPTS))
    (tmp_path / "striped.txt").write_text("\n".join(pipelines.OTHER_PROMPTS))
    (tmp_path / "tiny").symlink_to(tiny)
    code, out, err = run(capsys, *LEARN, *FLOAT, "--size", "32x32", "--denoising-steps", "1")
    assert (code, "33 sites" in out) == (0, True), err
    return tmp_path


def test_a_strip_has_a_row_a_prompt_and_a_column_a_strength(studio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (*PAINT, *FLOAT, "--prompt", "a moon", "a sun", "--strength", "0", "0.5", "1", "--json", "told.json")
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "painted 3 prompts at 3 strengths" in out
    files = {file.name for file in (studio / "made").iterdir() if file.name != MARK}
    assert files == {"strip.png", "strip.gif"} | {f"{i:02d}-{s}.png" for i in (1, 2, 3) for s in ("0", "0.5", "1")}
    strip, untouched = picture("made/strip.png"), picture("made/01-0.png")
    assert untouched.size == (32, 32)
    assert strip.width > 3 * 160
    assert strip.height > 3 * 160
    with Image.open("made/strip.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 4  # there and back
    told = json.loads((studio / "told.json").read_text())
    assert (told["drawing"]["steps"], told["drawing"]["size"]) == (2, [32, 32])


def test_strengths_that_look_alike_have_a_picture_each(studio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *PAINT, *FLOAT, "--strength", "0.1234567", "0.1234568", "0.1234567")
    assert code == 0, err
    names = {file.name for file in (studio / "made").iterdir() if file.name != MARK}
    assert names == {"strip.png", "strip.gif", "01-0.1234567.png", "01-0.1234568.png"}


def test_painting_is_what_generate_draws(studio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *PAINT, *FLOAT, "--strength", "0", "--seed", "7")[0] == 0
    (drawn,) = pipelines.image_model("stable diffusion 1").generate(["a red star"], seed=7)
    assert picture("made/01-0.png").tobytes() == drawn.tobytes()


def test_without_an_intervention_the_untouched_model_paints(studio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "paint", "tiny", *PAINT[4:], *FLOAT, "--seed", "7")
    assert code == 0, err
    (drawn,) = pipelines.image_model("stable diffusion 1").generate(["a red star"], seed=7)
    assert picture("made/01-0.png").tobytes() == drawn.tobytes()
    assert sorted(file.name for file in (studio / "made").glob("0*.png")) == ["01-0.png"]
    for option in (("--strength", "1"), ("--inverse",)):
        check_refused(
            capsys, studio, f"{option[0]} changes an intervention; name one", "paint", "tiny", "--prompt", "a",
            "--out", "b", *option,
        )  # fmt: skip


def test_a_picture_says_how_it_was_made(studio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Drawn again from what the file says, the third picture is the same."""
    arguments = (*PAINT, *FLOAT, "--prompt", "ein schöner Stern", "a moon", "--strength", "0", "0.5", "--seed", "7")
    assert run(capsys, *arguments)[0] == 0
    with Image.open("made/03-0.png") as one:
        written = json.loads(one.info["lineas"])
        assert one.info["Description"] == written["prompt"] == "a moon"
    with Image.open("made/02-0.5.png") as one:
        assert one.info["Description"] == "ein schöner Stern"
        assert json.loads(one.info["lineas"])["intervention"] == ["striped"]
    assert written["strength"] == 0
    (drawn,) = pipelines.image_model("stable diffusion 1").generate([written["prompt"]], seed=written["seed"])
    assert picture("made/03-0.png").tobytes() == drawn.tobytes()


def test_the_inverse_goes_the_other_way(studio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *PAINT, *FLOAT, "--strength", "1")[0] == 0
    there = picture("made/01-1.png").tobytes()
    assert run(capsys, *PAINT, *FLOAT, "--strength", "1", "--inverse", "--force")[0] == 0
    assert picture("made/01-1.png").tobytes() != there


def test_a_folded_pipeline_paints_by_itself(studio: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "fold", "tiny", "--intervention", "striped", "--strength", "0.7", "--out", "folded")
    assert code == 0, err
    assert "UNet2DConditionModel, float32" in out
    assert (studio / "folded" / "model_index.json").exists()
    assert run(capsys, *PAINT, *FLOAT, "--strength", "0.7")[0] == 0
    assert (
        run(capsys, "paint", "folded", *PAINT[2:7], "again", "--size", "32", *FLOAT, "--strength", "0", "--force")[0]
        == 0
    )
    live, folded = (picture(f"{folder}/01-{s}.png") for folder, s in (("made", "0.7"), ("again", "0")))
    assert live.size == folded.size
    apart = [abs(a - b) for a, b in zip(live.tobytes(), folded.tobytes())]
    assert max(apart) <= 1  # a picture's numbers are rounded


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (PAINT[:4], "Missing option '--out'"),
        ((*PAINT[:4], "--out", "made"), "there is nothing to draw; give --prompt TEXT or --prompts FILE"),
        ((*PAINT[:-1], "wide"), "a size looks like 512x768 (height, width) or 512, not 'wide'"),
        ((*PAINT, "--guidance", "half"), "guidance is one of 'both', 'conditional', 'none', not 'half'"),
        ((*PAINT, "--denoising-steps", "0"), "--denoising-steps must be at least 1, not 0"),
        ((*PAINT[:-3], "striped"), "striped is what the command reads"),
        (("generate", "tiny", "--intervention", "striped", "--prompt", "a"), "draws images and writes no text"),
        (("paint", "nowhere", *PAINT[2:]), "no model could be loaded from 'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence(
    studio: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    check_refused(capsys, studio, sentence, *arguments)


def test_a_language_model_does_not_paint(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(
        capsys, desk, "is a language model and draws no images", "learn", "model", "--source", "source.txt", "--target",
        "target.txt", "--out", "calm", "--size", "64",
    )  # fmt: skip
    pipelines.image_model("stable diffusion 1")
    check_refused(
        capsys, desk, "lineas generate continues texts", "paint", "model", "--intervention", "polite", "--prompt", "a",
        "--out", "made",
    )  # fmt: skip
