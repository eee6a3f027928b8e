"""The report: what it says of neurons, layers and overlaps, and that a browser shows one self-contained page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from console import LEARN, SOURCE, check_refused, run
from families import PROMPTS, outputs

import lineas
from lineas import AffineMap, Intervention, TextModel
from lineas.reporting import Content, charts, page
from lineas.reporting.neurons import by_layer, largest_neurons, overlap


def sparse(*touched: int, shift: float = 1.0) -> AffineMap:
    map_ = AffineMap.identity(64)
    map_.shift[list(touched)] = shift
    return map_


def test_the_largest_neurons_are_measured_in_their_own_deviation(stories: TextModel) -> None:
    """A small shift of a quiet neuron is larger than a large one of a loud neuron; prompts are those it answers to."""
    site = stories.sites()[2]
    z = torch.stack([tokens.mean(0) for tokens in outputs(stories, PROMPTS, site)])
    deviation = z.std(0, correction=0)
    quiet, loud = int(deviation.argmin()), int(deviation.argmax())
    map_ = sparse(quiet, shift=float(2 * deviation[quiet]))
    map_.shift[loud] = deviation[loud]
    first, second = largest_neurons(Intervention({site.name: map_}), 5, stories, PROMPTS, each=1)
    assert (first.index, second.index) == (quiet, loud)
    assert (first.change, second.change) == (pytest.approx(2, rel=1e-3), pytest.approx(1, rel=1e-3))
    levels = (z - z.mean(0)) / deviation
    furthest = int(levels[:, quiet].abs().argmax())
    assert first.excited == [(PROMPTS[furthest], pytest.approx(float(levels[furthest, quiet]), rel=1e-3))]
    without = largest_neurons(Intervention({site.name: map_}), 5)
    assert {neuron.index for neuron in without} == {quiet, loud}  # and no neuron that is not touched
    assert without[0].excited == []


def test_layers_are_counted_by_kind_of_module() -> None:
    maps = {f"model.layers.{i}.{kind}": sparse(*range(i)) for i in (1, 2) for kind in ("norm", "mlp")}
    found = by_layer(Intervention({**maps, "final": sparse(0)}))
    assert found == {
        "model.layers.*.norm": [(1, 1, 64), (2, 2, 64)],
        "model.layers.*.mlp": [(1, 1, 64), (2, 2, 64)],
        "final": [(None, 1, 64)],
    }


def test_the_overlap_is_the_jaccard_index_over_all_sites() -> None:
    one = Intervention({"a": sparse(0, 1, 2), "b": sparse(5)})
    other = Intervention({"a": sparse(1, 2, 3), "c": sparse(7)})
    assert overlap(one, other) == overlap(other, one) == 2 / 6
    assert overlap(one, one) == 1
    nothing = Intervention({"a": AffineMap.identity(64)})
    assert (overlap(one, nothing), overlap(nothing, nothing)) == (0, 1)


def test_networks_of_different_width_share_no_neuron() -> None:
    wide = AffineMap.identity(128)
    wide.shift[:2] = 1.0
    assert overlap(Intervention({"a": sparse(0, 1)}), Intervention({"a": wide})) == 0


def test_a_point_that_was_not_measured_moves_no_label() -> None:
    rows = [{"strength": 0.25 * i, "toxic": 0.4 - 0.1 * i, "perplexity": 20.0 + i} for i in range(4)]
    del rows[1]["perplexity"]
    rows[2]["perplexity"] = float("nan")
    drawn = page(Content({"calm": Intervention({"a": sparse(0)})}, curves={"calm": rows}))
    front = next(svg for svg in re.findall(r"<svg.*?</svg>", drawn, re.DOTALL) if 'class="small"' in svg)
    assert re.findall(r'class="small">([^<]*)<', front) == ["0", "0.75"]
    assert "0.75: toxic, % 10, perplexity 23" in front


def test_curves_are_drawn_where_their_numbers_are() -> None:
    drawn = str(charts.lines({"a": [(0.0, 10.0), (1.0, 30.0), (0.5, float("nan"))]}, "strength", "damage", zero=False))
    svg = ET.fromstring(drawn[: drawn.index("</svg>") + 6])
    points = [tuple(map(float, pair.split(","))) for pair in svg.find("polyline").get("points").split()]  # pyright: ignore[reportOptionalMemberAccess]
    assert len(points) == 2  # what is not finite is left out
    ticks = {text.text: text for text in svg.findall("text")}
    for (x, y), across, up in zip(points, ("0", "1"), ("10", "30")):
        assert x == pytest.approx(float(ticks[across].get("x")), abs=0.2)  # pyright: ignore[reportArgumentType]
        assert y == pytest.approx(float(ticks[up].get("y")) - 4, abs=0.2)  # pyright: ignore[reportArgumentType]
    assert charts.lines({"a": []}, "x", "y") == ""


def test_what_people_wrote_is_shown_as_text() -> None:
    sample = ("<script>alert(1)</script>", {"0": "<b>bold</b>"})
    noted = Intervention({"a": sparse(0)}, facts={"note": "</pre><script>"})
    made = page(Content({"<i>": noted}, samples={"<i>": [sample]}))
    assert "<script" not in made
    assert "<b>" not in made
    assert "&lt;b&gt;bold&lt;/b&gt;" in made


@pytest.fixture
def reported(desk: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Two interventions, an evaluation of both, and the report of all that."""
    run(capsys, *LEARN, "--dtype", "float32", "--gamma", "2e-3", "--steps", "20")
    run(capsys, *LEARN, "--dtype", "float32", "--out", "dense")
    more = ("--prompts", "source.txt", "--neutral", "target.txt", "--strength", "0", "0.5", "1", "--out", "found")
    run(capsys, "evaluate", "model", "--intervention", "calm", "dense", *more, "--dtype", "float32")
    code, out, _ = run(
        capsys, "report", "--intervention", "calm", "dense", "--prompts", "source.txt",
        "--evaluation", "found/evaluation.json", "--strength", "0", "1", "--examples", "2", "--max-new-tokens", "5",
        "--dtype", "float32",
    )  # fmt: skip
    assert code == 0
    assert "wrote report.html" in out
    return desk


def test_a_page_holds_everything_and_nothing_from_elsewhere(reported: Path) -> None:
    made = (reported / "report.html").read_text()
    for title in (
        "Distance to the target",
        "Effect and damage",
        "Samples",
        "Where the change sits",
        "Largest",
        "Overlap",
    ):
        assert f"<h2>{title}" in made
    assert not re.search(r'(src|href)="(?!data:)|@import|url\(', made)
    assert "prefers-color-scheme: dark" in made
    calm = lineas.Intervention.load("calm")
    neurons = sum(int(m.support().sum()) for m in calm.maps.values())
    assert f"{neurons} of 320 neurons ({calm.support():.2%})" in made
    rows = json.loads((reported / "found" / "evaluation.json").read_text())["rows"]
    for row in rows:
        assert f"{row['values']['perplexity']:.4g}" in made
    for name in ("calm", "dense"):
        assert f"<h3>{name}: {SOURCE.splitlines()[0]} ...</h3>" in made


def test_a_browser_shows_it_in_light_and_in_dark(reported: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here; apt install chromium")
    from PIL import Image

    means = []
    for scheme in (1, 0):  # of Blink: light, dark
        picture = reported / f"{scheme}.png"
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--blink-settings=preferredColorScheme={scheme}",
        ]
        command += ["--window-size=1000,3000", "--hide-scrollbars", f"--screenshot={picture}"]
        subprocess.run([*command, (reported / "report.html").as_uri()], check=True, capture_output=True, timeout=120)
        with Image.open(picture) as shown:
            grey = shown.convert("L")
        ink = [level for level, count in enumerate(grey.histogram()) if count]
        means.append(sum(i * n for i, n in enumerate(grey.histogram())) / (grey.width * grey.height))
        assert max(ink) - min(ink) > 150  # ink on paper, not one on its like
    assert means[0] > 200
    assert means[1] < 70


WRONG = [
    (
        (
            "--intervention",
            "nowhere",
        ),
        "nowhere",
    ),
    (("--intervention", "polite", "--evaluation", "source.txt"), "source.txt is no evaluation"),
    (("--intervention", "polite", "--evaluation", "missing.json"), "missing.json is no evaluation"),
    (("--intervention", "polite", "--prompts", "missing.txt"), "there is no file missing.txt"),
    (("--intervention", "polite", "--out", "source.txt"), "source.txt exists already"),
    (("--intervention", "polite", "--neurons", "-1"), "must be at least 0"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_mistakes_are_one_sentence(
    desk: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    check_refused(capsys, desk, sentence, "report", *arguments)
