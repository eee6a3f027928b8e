"""The report: what it says of neurons, layers and overlaps, and that a browser shows one self-contained page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from console import LEARN, SOURCE, check_refused, run
from families import PROMPTS, outputs

import lineas
from lineas import AffineMap, Intervention, TextModel
from lineas.reporting import Content, page
from lineas.reporting.neurons import activity, largest_neurons, overlap, site_sizes


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
    one = Intervention({site.name: map_}, {site.name: site})
    first, second = largest_neurons(one, 5, activity(one, stories, PROMPTS), PROMPTS, each=1)
    assert (first.index, second.index) == (quiet, loud)
    assert (first.change, second.change) == (pytest.approx(2, rel=1e-3), pytest.approx(1, rel=1e-3))
    levels = (z - z.mean(0)) / deviation
    furthest = int(levels[:, quiet].abs().argmax())
    assert first.excited == [(PROMPTS[furthest], pytest.approx(float(levels[furthest, quiet]), rel=1e-3))]
    without = largest_neurons(Intervention({site.name: map_}), 5)
    assert {neuron.index for neuron in without} == {quiet, loud}  # and no neuron that is not touched
    assert without[0].excited == []


def test_the_size_of_a_site_is_its_move_in_the_spread_of_the_prompts() -> None:
    """Scaling by 1 + s about a mean of 0 moves every prompt by s times its distance; a shift moves all alike."""
    z = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    z -= z.mean(0)
    scaled, shifted = AffineMap.identity(64), sparse(3, shift=2.0)
    scaled.scale[:] = 1.25
    sizes = site_sizes(Intervention({"a": scaled, "b": shifted, "c": AffineMap.identity(64)}), dict.fromkeys("abc", z))
    spread = float(z.square().sum(1).mean().sqrt())
    assert sizes == {"a": pytest.approx(0.25), "b": pytest.approx(2.0 / spread), "c": 0}
    assert site_sizes(Intervention({"a": scaled, "b": shifted})) == {"a": 0.25, "b": 2.0 / 64}


def test_where_the_change_sits_tells_dense_layers_apart() -> None:
    """Every layer has its own number and bar, in order; the neurons are counted where not all are changed."""
    dense = {f"model.layers.{i}.norm": sparse(*range(64), shift=1e-4 * (i + 1)) for i in range(11)}
    few = {f"model.layers.{i}.norm": sparse(*range(i)) for i in range(11)}
    drawn = page(Content({"dense": Intervention(dense)}))
    assert re.findall(r'row"><code>([^<]*)<', drawn) == list(dense)
    widths = [float(width) for width in re.findall(r'style="width:([\d.]+)%', drawn)]
    assert widths == pytest.approx([100 * (i + 1) / 11 for i in range(11)], abs=0.06)
    assert ">0.0003<" in drawn
    assert "of 64<" not in drawn
    both = page(Content({"dense": Intervention(dense), "few": Intervention(few)}))
    assert both.count(">all<") == 11
    assert [f">{i} of 64<" in both for i in range(11)] == [True] * 11


def test_sites_of_a_kind_stand_together() -> None:
    """Two kinds alternate in a network's layers; their bars do not."""
    sites = [f"layers.{i}.{kind}" for i in range(3) for kind in ("norm", "mlp")]
    drawn = page(Content({"a": Intervention(dict.fromkeys(sites, sparse(1)))}))
    assert re.findall(r'row"><code>([^<]*)<', drawn) == [
        f"layers.{i}.{kind}" for kind in ("norm", "mlp") for i in range(3)
    ]


def test_sizes_are_called_what_they_are(tmp_path: Path, stories: TextModel) -> None:
    """Without prompts nothing is known of their distances from the mean."""
    one = Intervention({stories.sites()[0].name: sparse(1)})
    for prompts, by_prompts in (((), False), (PROMPTS, True)):
        options = {"model": stories, "prompts": prompts} if prompts else {}
        made = lineas.report({"calm": one}, tmp_path / "page.html", examples=0, overwrite=True, **options).read_text()
        assert ("as far as the prompts lie from their mean" in made) == by_prompts


def test_small_numbers_keep_their_digits() -> None:
    map_ = sparse(3, shift=0.000123456)
    map_.scale[3] = 1.000012
    drawn = page(
        Content({"a": Intervention({"x": map_})}, neurons={"a": largest_neurons(Intervention({"x": map_}), 1)})
    )
    assert ">+0.000123<" in drawn
    assert ">1.00001<" in drawn


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
    front = next(svg for svg in re.findall(r"<svg.*?</svg>", drawn, re.DOTALL) if 'class="note"' in svg)
    assert re.findall(r'class="note">([^<]*)<', front) == ["0", "0.75"]
    assert "0.75: toxic, % 10, perplexity 23" in front


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
    assert f"{neurons} of 256 neurons ({calm.support():.2%})" in made
    rows = json.loads((reported / "found" / "evaluation.json").read_text())["rows"]
    for row in rows:
        assert f"{row['values']['perplexity']:.4g}" in made
        low, high = row["intervals"]["perplexity"]
        assert f" [{low:.4g}, {high:.4g}]</title>" in made
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
