"""The small image model that comes with lineas: it draws what it is told, and a style is learned on it in seconds."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sharing import made_once

import lineas
from lineas.cli import main
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.judges import WorldJudge
from lineas.evaluation.plan import Plan
from lineas.evaluation.variants import Steered, Untouched
from lineas.prompts import read_prompts

FOLDER = Path(lineas.__file__).parent / "data" / "models" / "shapes"


@pytest.fixture(scope="module")
def shapes() -> Any:
    return lineas.load("shapes")


def test_it_is_small_and_says_where_it_came_from(shapes: Any) -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12 * 10**6
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl")]
    assert "tools/train_images.py" in (FOLDER / "README.md").read_text()
    configs = [file for file in files if file.suffix == ".json"]
    assert configs
    assert not [file.name for file in configs if "_name_or_path" in file.read_text()]  # a folder of whoever trained it
    assert (shapes.name, shapes.steps, shapes.guidance_scale) == ("shapes", 4, 0.0)


def test_it_draws_what_it_is_told(shapes: Any) -> None:
    """The judge sees each thing that a prompt names, and none that it does not name."""
    judge = WorldJudge(FOLDER)
    prompts = [*read_prompts("lineas:night/target"), *read_prompts("lineas:sun/source")]
    pictures = torch.stack(shapes.generate(prompts, batch_size=32, output_type="pt"))
    named, others = [], []
    for label in judge.labels:
        chances = judge.scores(pictures, label)["concept"]
        for prompt, chance in zip(prompts, chances):
            (named if label in prompt else others).append(chance)
    assert sum(named) / len(named) > 0.8
    assert sum(others) / len(others) < 0.1


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `lineas demo --images` writes: a folder for each lesson, the printed text, the numbers."""

    def teach(folder: Path) -> None:
        folder.mkdir()
        with (folder / "printed.txt").open("w") as printed, redirect_stdout(printed):
            main(["demo", "--images", "--out", str(folder), "--json", str(folder / "told.json")])

    return made_once(tmp_path_factory, "taught", teach)


def test_the_demo_teaches_night_and_takes_the_sun_away(taught: Path) -> None:
    assert "A style: night falls, from 32 + 32 prompts" in (taught / "printed.txt").read_text()
    night, sun = json.loads((taught / "told.json").read_text())["lessons"]
    assert night["rows"][0]["concept"] < 0.1 < 0.8 < night["rows"][-1]["concept"]
    assert sun["rows"][0]["concept"] > 0.9 > 0.5 > sun["rows"][-1]["concept"]
    assert sun["rows"][-1]["img_score"] > 90
    for name in ("night", "sun"):
        with Image.open(taught / name / "strip.png") as strip:
            assert strip.width > 5 * 160
        assert (taught / name / "intervention" / "intervention.json").exists()


def test_night_falls_and_the_shapes_stay(shapes: Any, taught: Path) -> None:
    prompts, learned = read_prompts("lineas:night/prompts"), lineas.Intervention.load(taught / "night" / "intervention")
    systems = [Untouched(), Steered("night", learned, 0.5), Steered("night", learned, 1.0)]
    plan = Plan(prompts, concept="at night", judge=WorldJudge(FOLDER), sampling={"batch_size": 32})
    untouched, half, whole = evaluate(shapes, systems, plan).rows
    assert untouched.values["concept"] < 0.1
    assert whole.values["concept"] > 0.8
    assert untouched.values["concept"] <= half.values["concept"] <= whole.values["concept"]
    assert half.values["img_score"] > whole.values["img_score"]


def test_pooled_by_its_largest_pixel_a_sun_is_learned_and_by_its_mean_it_stays(shapes: Any, taught: Path) -> None:
    """It fills a twentieth of the picture: the mean hardly knows of it."""
    source, target, prompts = (read_prompts(f"lineas:sun/{side}") for side in ("source", "target", "prompts"))
    by_mean = lineas.learn(shapes, source, target, pooling="mean", progress=False)
    by_largest = lineas.Intervention.load(taught / "sun" / "intervention")
    assert (by_mean.facts["pooling"], by_largest.facts["pooling"]) == ("mean", "max")
    plan = Plan(prompts, concept="sun", judge=WorldJudge(FOLDER), sampling={"batch_size": 32})
    systems = [Untouched(), Steered("mean", by_mean), Steered("max", by_largest)]
    untouched, stays, gone = evaluate(shapes, systems, plan).rows
    assert untouched.values["concept"] > 0.9
    assert stays.values["concept"] > 0.8
    assert gone.values["concept"] < 0.1
    assert gone.values["img_score"] > 95


def test_words_outside_its_world_are_told(shapes: Any) -> None:
    with pytest.warns(UserWarning, match="shapes does not know elephant"):
        shapes.generate(["a pink elephant on sky"])
