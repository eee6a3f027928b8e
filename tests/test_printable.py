"""Text from elsewhere in sentences, model cards, tables, pages, plots and pictures."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import Environment
from markupsafe import escape

from lineas import AffineMap, Intervention
from lineas.evaluation.results import Evaluation, Row
from lineas.intervention.model_card import model_card
from lineas.intervention.model_identity import ModelIdentity
from lineas.models import checkpoint
from lineas.printable import as_code, as_json, as_label, front_matter, in_a_line, in_markdown, printable
from lineas.reporting import Content, charts, page
from lineas.reporting.image_grid import strip
from lineas.reporting.plots import plot_effect_and_damage
from lineas.reporting.tables import markdown
from lineas.sweeping.report import markdown as sweep_markdown
from lineas.sweeping.summary import Line

CONTROLS = [
    "\x00",
    "\x07",
    "\x08",
    "\r",
    "\x1b",
    "\x7f",
    "\x80",
    "\x9b",
    "\x9f",
    "\u202a",
    "\u202e",
    "\u2066",
    "\u2069",
]
EVIL = "x\n---\nlicense: evil"
FOREIGN = "a|b`c\n# d\x1b[2J\x9b\u202e<script>alert(1)</script>"


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_control_characters_are_shown(control: str) -> None:
    shown = f"\\x{ord(control):02x}" if ord(control) < 256 else f"\\u{ord(control):04x}"
    assert printable(f"a{control}b") == f"a{shown}b"
    assert printable("a\n\tb") == "a\n\tb"
    assert in_a_line("a\n\tb") == "a\\n\\tb"


@given(st.text())
def test_a_text_is_shown_once_and_for_all(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    assert json.loads(as_json([text])) == [text]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", as_json({text: text}))


@given(st.text())
@example("no-break space at the end\xa0")
def test_front_matter_says_what_it_was_given(name: str) -> None:
    first, *lines, last = front_matter("lineas", name)
    assert (first, last) == ("---", "---")
    assert yaml.safe_load("\n".join(lines)) == {
        "library_name": "lineas",
        "tags": ["lineas", "steering"],
        "base_model": in_a_line(name),
    }


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_labels_differ_where_numbers_do(one: float, other: float) -> None:
    assert (as_label(one) == as_label(other)) == (one == other)


def card_of(name: str, facts: dict[str, Any]) -> str:
    sites = [{"touched": True}]
    model = {"name": name, "architecture": FOREIGN}
    return model_card({"model": model, "facts": facts, "sites": sites, "support": 0.5, "operation": "At strength s."})


@pytest.mark.parametrize("name", [f"me/{EVIL}", "me/a: b", "me/'\"", "me/[x]", "me/#", "me/\x1b]0;t\x07", "- /x"])
def test_the_front_matter_of_a_card_holds_any_name(name: str) -> None:
    card = card_of(name, {"name": FOREIGN})
    front = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert front == {"library_name": "lineas", "tags": ["lineas", "steering"], "base_model": in_a_line(name)}
    provenance = {"base": name, "strength": 0.5, "sites": ["a"], "architecture": "Llama"}
    folded = checkpoint.card(provenance)
    assert yaml.safe_load(folded.split("\n---\n")[0].removeprefix("---\n"))["base_model"] == in_a_line(name)
    assert "\x1b" not in card + folded


def test_a_card_is_one_heading_and_one_row_whatever_its_facts_say() -> None:
    facts = {"name": FOREIGN, "measurements": [{FOREIGN: FOREIGN, "toxic_score": 0.5}], "data": {"file": FOREIGN}}
    facts["calibration"] = {"strength": 0.5, "effect": FOREIGN, "reached": True}
    card = card_of("me/a`b", facts)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", card)
    assert "<script>" not in card.split("```json")[0].replace("\\<script\\>", "")
    rows = [line for line in card.split("\n") if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert "toxic_score |" in rows[0]
    assert [line for line in card.split("\n") if line.startswith("# ")] == [f"# {in_markdown(FOREIGN)}"]
    assert "`` me/a`b ``" in card
    assert as_code("``") == "``` `` ```"


def test_tables_in_markdown_keep_their_columns() -> None:
    rows = [Row(FOREIGN, 0.1234567, {"toxic": 0.5}, {}, {}, {"kl": FOREIGN}), Row("b", 0.1234568, {"toxic": 0.4})]
    facts = {"model": FOREIGN, "dtype": "float32", "prompts": {"count": 1}, "seeds": [0], "neutral": {"count": 0}}
    evaluated = markdown(Evaluation(rows, [], facts))
    swept = sweep_markdown([Line(FOREIGN, 1e-4, False, 1.0, 1, {"support": 0.5, FOREIGN: 1.0})], None, FOREIGN)
    for text in (evaluated, swept):
        table = [line for line in text.split("\n") if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
        assert "\x1b" not in text
        assert not any(line.startswith("# ") for line in text.split("\n"))
    assert "0.1234567 |" in evaluated
    assert "0.1234568 |" in evaluated


def test_a_page_escapes_and_shows_what_comes_from_elsewhere() -> None:
    map_ = AffineMap.identity(4)
    map_.shift[0] = 1.0
    base = ModelIdentity(FOREIGN, FOREIGN, "0" * 64)
    facts = {"method": {"name": FOREIGN, FOREIGN: FOREIGN}, "cost": [2.0, 1.0], "made_by": FOREIGN}
    one = Intervention({"layers.0.<b>\x1b": map_}, base=base, facts=facts)
    curves = {FOREIGN: [{"strength": 0.0, "toxic": 0.5, FOREIGN: 1.0}, {"strength": 1.0, "toxic": 0.1, FOREIGN: 2.0}]}
    html = page(Content({FOREIGN: one}, curves=curves, samples={FOREIGN: [(FOREIGN, {FOREIGN: FOREIGN})]}))
    assert "<script" not in html
    assert "<b>" not in html
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", html)
    assert "\\x1b[2J" in html
    drawn = str(charts.lines({FOREIGN: [(0.0, 1.0), (1.0, 2.0)]}, FOREIGN, FOREIGN, notes=[FOREIGN] * 2))
    ET.fromstring(f"<x>{drawn}</x>")
    assert "\x1b" not in drawn
    assert Environment(autoescape=True).from_string("{{ x }}").render(x="<") == str(escape("<"))


def test_pictures_and_plots_take_any_text(tmp_path: Path) -> None:
    from PIL import Image

    picture = Image.new("RGB", (160, 160))
    plain, odd = (strip([[picture]], [text], ["1"]) for text in ("a\\nb", "a\nb"))
    assert plain.tobytes() == odd.tobytes()  # one line, not two over the picture
    rows = [Row("$x^$\x1b", 0.5, {"toxic": 0.5, "perplexity": 2.0}), Row("_a$", 1.0, {"toxic": 0.1, "perplexity": 3.0})]
    assert plot_effect_and_damage(rows, tmp_path / "plot.png").stat().st_size > 0
