"""Charts: texts that can be read, curves where their numbers are, and judges that tell little."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineas import AffineMap, Intervention
from lineas.evaluation.results import Evaluation, Row
from lineas.reporting import Content, charts, colours, page
from lineas.reporting.plots import plot_effect_and_damage
from lineas.reporting.tables import markdown, saturated
from lineas.reporting.texts import Box, free_boxes, overlap

WIDE = 0.64
"""Width of a figure of DejaVu Sans, the widest of the common fonts, in its height."""
LEAST = 11
"""Pixels of a letter that can be read."""
strengths_and_steps = st.floats(-100, 1e5).map(lambda number: round(number, 3))
numbers = st.floats(-1e6, 1e6).map(lambda number: round(number, 6))


def svg(drawn: Any) -> ET.Element:
    text = str(drawn)
    return ET.fromstring(text[text.index("<svg class=") : text.index("</svg>") + 6])


def boxes(chart: ET.Element) -> list[Box]:
    """Return the boxes of a chart's texts by their anchors, a little wider than the letters."""
    found = []
    for text in chart.iter("text"):
        x, y, wide = float(text.get("x", "")), float(text.get("y", "")), WIDE * charts.FONT * len(text.text or "")
        left = x - wide * {"end": 1.0, "middle": 0.5, None: 0.0}[text.get("text-anchor")]
        found.append((left, y - 0.75 * charts.FONT, left + wide, y + 0.05 * charts.FONT))
    return found


def points(chart: ET.Element) -> list[tuple[float, float]]:
    path = next(chart.iter("polyline")).get("points", "")
    return [(float(a), float(b)) for a, b in (pair.split(",") for pair in path.split())]


def curve(*values: tuple[float, float, float], **more: Any) -> list[dict[str, Any]]:
    """Rows of strength, share of polite texts and perplexity."""
    keys = ("strength", "polite", "perplexity")
    return [dict(zip(keys, row)) | {"polite_score": row[1]} | more for row in values]


def content(rows: list[dict[str, Any]], *names: str) -> Content:
    map_ = AffineMap.identity(8)
    map_.shift[0] = 1.0
    interventions = {name: Intervention({"layers.0.norm": map_}) for name in names or ("calm",)}
    return Content(interventions, curves=dict.fromkeys(interventions, rows))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(strengths_and_steps, numbers), max_size=6), min_size=1, max_size=3))
def test_no_text_of_a_chart_covers_another(curves: list[list[tuple[float, float]]]) -> None:
    drawn = charts.lines(
        {str(i): one for i, one in enumerate(curves)},
        "x",
        "y",
        zero=False,
        notes=[f"{0.25 * i:g}" for one in curves for i, _ in enumerate(one)],
    )
    if not drawn:
        assert not any(curves)
        return
    chart = svg(drawn)
    texts = boxes(chart)
    assert not [pair for pair in combinations(texts, 2) if overlap(*pair)]
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= charts.WIDTH + 1 and box[3] <= charts.HEIGHT for box in texts)
    labels = [text.text for text in chart.iter("text") if text.get("class") != "note"]
    for anchor in ("end", "middle"):
        ticks = [text.text for text in chart.iter("text") if text.get("text-anchor") == anchor]
        assert 1 <= len(ticks) <= 6
        assert len(set(ticks)) == len(ticks)
    assert labels


def test_points_on_each_other_leave_labels_out_rather_than_over_each_other() -> None:
    crowd = [(10.0 + 0.01 * i, 20.0) for i in range(30)]
    found = free_boxes([crowd], [f"{i}" for i in range(30)], 8, 13, (0, 0, 340, 200))
    placed = [box for box in found if box]
    assert 1 <= len(placed) < 30
    assert not [pair for pair in combinations(placed, 2) if overlap(*pair)]
    assert free_boxes([[(50, 50)], [(50, 50)]], ["0", "0"], 8, 13, (0, 0, 340, 200))[1] is None  # said once


def test_letters_are_never_smaller_than_can_be_read() -> None:
    """The page shows a chart no narrower than `min-width`, however narrow the screen."""
    made = page(content(curve((0, 0.1, 20), (1, 0.5, 21))))
    least = float(re.search(r"svg\.chart {[^}]*min-width: ([\d.]+)rem", made)[1]) * 16  # pyright: ignore[reportOptionalSubscript]
    font = float(re.search(r"svg text {[^}]*font: ([\d.]+)px", made)[1])  # pyright: ignore[reportOptionalSubscript]
    assert font == charts.FONT
    assert font * least / charts.WIDTH >= LEAST


def test_colours_stand_out_from_the_paper_and_marks_from_each_other() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted(map(luminance, (one, other)))
        return (high + 0.05) / (low + 0.05)

    made = page(content(curve((0, 0.1, 20), (1, 0.5, 21)), *"abcdef"))
    light, dark = re.findall(r"--paper: (#\w+)", made)
    light = light if len(light) == 7 else "#" + "".join(2 * c for c in light[1:])
    assert all(contrast(colour, light) >= 3 for colour in colours.CURVES)  # WCAG 1.4.11
    assert all(contrast(colour, dark) >= 3 for colour in colours.CURVES_IN_THE_DARK)
    assert len(set(charts.SHAPES)) == len(charts.SHAPES) > 3
    key = re.findall(r'class="key"><svg[^>]*><path d="([^"]*)" class="mark (c\d)"', str(charts.legend("abcdef")))
    assert len(set(key)) == 6
    assert charts.legend(["alone"]) == ""


def test_curves_are_drawn_where_their_numbers_are() -> None:
    drawn = charts.lines({"a": [(0.0, 10.0), (1.0, 30.0), (0.5, math.nan)]}, "strength", "damage", zero=False)
    places = points(svg(drawn))
    assert len(places) == 2  # what is not finite is left out
    ticks = {text.text: text for text in svg(drawn).iter("text")}
    for (x, y), across, up in zip(places, ("0", "1"), ("10", "30")):
        assert x == pytest.approx(float(ticks[across].get("x", "")), abs=0.2)
        assert y == pytest.approx(float(ticks[up].get("y", "")) - 4.5, abs=0.2)
    assert charts.lines({"a": []}, "x", "y") == ""


def test_intervals_are_drawn_at_their_ends() -> None:
    between = {"perplexity": (15.0, 30.0), "polite": (0.0, 0.4)}
    made = page(content(curve((0, 0.1, 20), (1, 0.2, 25), intervals=between)))
    charts_drawn = re.findall(r'<svg class="chart".*?</svg>', made, re.DOTALL)
    bands = [chart for chart in map(ET.fromstring, charts_drawn) if chart.find("polygon") is not None]
    assert len(bands) == 2  # over strength; not of the effect against the damage
    for chart, low, high in zip(bands, (0, 15), (40, 30)):
        side = [text for text in chart.iter("text") if text.get("text-anchor") == "end"]
        ticks = {text.text: float(text.get("y", "")) - 4.5 for text in side}
        ends = {float(pair.split(",")[1]) for pair in chart.find("polygon").get("points").split()}  # pyright: ignore[reportOptionalMemberAccess]
        assert sorted(ends) == pytest.approx([ticks[str(high)], ticks[str(low)]], abs=0.2)
    assert "95 % intervals" in made
    assert "95 % intervals" not in page(content(curve((0, 0.1, 20), (1, 0.2, 25))))


def test_likeness_is_called_likeness_and_falls() -> None:
    rows = [{"strength": s, "concept": 0.1 + s / 2, "img_score": 100 - 12 * s} for s in (0.0, 0.5, 1.0)]
    made = page(content(rows))
    figures = re.findall(r"<figure>.*?</figure>", made, re.DOTALL)
    (over_strength,) = (f for f in figures if "likeness" in f and '"across">strength' in f)
    assert "<figcaption>likeness, % (higher is better)</figcaption>" in over_strength
    assert "damage" not in over_strength.lower()
    heights = [y for _, y in points(svg(over_strength))]
    assert heights == sorted(heights)  # of pixels, from the top
    ticks = [float(text.text or "") for text in svg(over_strength).iter("text") if text.get("text-anchor") == "end"]
    assert max(ticks) <= 100
    assert "<figcaption>perplexity (lower is better)</figcaption>" in page(content(curve((0, 0.1, 20), (1, 0.5, 21))))


def test_a_judge_that_always_says_the_same_is_noticed() -> None:
    sure = curve((0, 0.97, 20), (0.5, 1.0, 21), (1, 0.984, 22))
    (said,) = saturated(sure)
    assert "yes to nearly everything (97.0 % to 100.0 %)" in said
    assert "untouched" in said
    assert said in page(content(sure))
    assert "no to nearly everything" in saturated(curve((0, 0.004, 20), (1, 0.0, 22)))[0]
    assert saturated(curve((0, 0.5, 20), (1, 1.0, 21))) == []  # a strong effect
    assert saturated(curve((0.5, 0.99, 20), (1, 1.0, 21))) == []  # and perhaps one: the untouched model is not known
    assert saturated([{"strength": s, "some_task": 1.0, "distinct_1": 0.99} for s in (0, 1)]) == []  # no judges
    facts = {"model": "m", "dtype": "float32", "prompts": {"count": 4}, "neutral": {"count": 4}, "seeds": [0]}
    rows = [Row("calm", row["strength"], {name: row[name] for name in ("polite", "polite_score")}) for row in sure]
    assert "yes to nearly everything" in markdown(Evaluation(rows, [], facts))


def test_a_curve_has_one_colour_on_the_whole_page() -> None:
    one, other, never_learned = (f"calm{i}" for i in range(3))
    rows = curve((0, 0.1, 20), (1, 0.5, 21))
    map_ = AffineMap.identity(8)
    costs = {one: [2.0], other: [3.0, 1.0]}
    interventions = {name: Intervention({"norm": map_}, facts={"cost": cost}) for name, cost in costs.items()}
    made = page(Content(interventions, curves={never_learned: rows, other: rows, one: rows}))
    for name, colour in zip((one, other, never_learned), ("c0", "c1", "c2")):
        found = re.findall(rf'class="mark (c\d)"><title>{name} ', made)
        assert set(found) == {colour}


MEASURE = """<script>
document.title = JSON.stringify([...document.querySelectorAll("svg.chart")].map(chart =>
  [...chart.querySelectorAll("text")].map(text => { const r = text.getBoundingClientRect();
    return [r.left, r.top + 0.2 * r.height, r.right, r.bottom - 0.25 * r.height, r.height]; })));
</script>"""


@pytest.mark.parametrize("wide", [1000, 500])
def test_a_browser_draws_the_texts_apart_and_large_enough(tmp_path: Path, wide: int) -> None:
    """The boxes that Chromium gives the letters, less the room above and below figures."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here; apt install chromium")
    rows = curve((0, 0.14, 45.4), (0.25, 0.08, 47.4), (0.5, 0.031, 51), (0.75, 0.031, 56.7), (1, 0.016, 65.1))
    near = curve((0, 0.14, 45.4), (0.25, 0.14, 46.3), (0.5, 0.19, 47.3), (0.75, 0.125, 49.1), (1, 0.094, 50.5))
    both = content(rows, "dense", "sparse")
    file = tmp_path / "page.html"
    file.write_text(page(Content(both.interventions, curves={"dense": rows, "sparse": near})) + MEASURE)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={wide},2000", "--dump-dom"]
    found = subprocess.run([*command, file.as_uri()], check=True, capture_output=True, text=True, timeout=120).stdout
    shown = json.loads(re.search(r"<title>(.*?)</title>", found)[1])  # pyright: ignore[reportOptionalSubscript]
    assert len(shown) == 3
    assert sum(map(len, shown)) > 30
    for chart in shown:
        assert not [pair for pair in combinations([tuple(box[:4]) for box in chart], 2) if overlap(*pair)]
        assert min(box[4] for box in chart) >= LEAST


def test_the_letters_of_a_plot_have_one_readable_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 11 pixels where a page shows a plot 860 pixels wide; labels of points and the legend cover nothing."""
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation, Text

    seen: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: (seen.append(figure), Path(file).touch()))
    rows = [Row("untouched", 0.0, {"toxic": 0.1, "perplexity": 20.0}, intervals={"toxic": (0.05, 0.2)})]
    rows += [Row("calm", s, {"toxic": 0.1 - 0.09 * s, "perplexity": 20 + s}) for s in (0.01, 0.02, 0.5, 1.0)]
    plot_effect_and_damage(rows, tmp_path / "plot.png")
    (figure,) = seen
    figure.draw_without_rendering()
    texts: list[Any] = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    inches = figure.get_figwidth()
    assert all(text.get_fontsize() / 72 * 860 / inches >= LEAST for text in texts)
    labels: list[Any] = [
        tuple(text.get_window_extent().extents) for text in figure.axes[0].texts if isinstance(text, Annotation)
    ]
    assert len(labels) >= 3
    assert not [pair for pair in combinations(labels, 2) if overlap(*pair)]
    axes: list[Any] = figure.axes
    key: Any = tuple(figure.legends[0].get_window_extent().extents)
    assert not any(overlap(key, tuple(axis.get_tightbbox().extents)) for axis in axes)
    assert all(len(axis.get_xticks()) <= 7 and len(axis.get_yticks()) <= 7 for axis in axes)


def test_letters_grow_with_a_wide_strip() -> None:
    """Pages show a strip 968 pixels wide; its letters are 11 pixels or more there."""
    from PIL import Image, ImageChops

    from lineas.reporting.image_grid import strip

    picture = Image.new("RGB", (1024, 1024), (255, 255, 255))
    whole = strip([[picture] * 3], ["HHHH"], ["H"] * 3)
    ink = ImageChops.invert(whole.convert("L")).crop((0, 0, whole.width, 90)).getbbox()
    assert ink is not None
    assert (ink[3] - ink[1]) * 968 / whole.width >= 0.7 * LEAST  # a capital is 0.7 of its font
