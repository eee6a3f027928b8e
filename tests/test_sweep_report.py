"""The table of a sweep writes every measure in its own unit."""

from __future__ import annotations

from lineas.cli.sweep import _table
from lineas.sweeping.report import markdown
from lineas.sweeping.summary import summary

ROWS = [
    {"method": "untouched", "gamma": None, "refit": False, "strength": 0.0, "values": {"clip_score": 20.0}},
    {
        "method": "lineas",
        "gamma": 0.001,
        "refit": False,
        "strength": 1.0,
        "support": 0.0125,
        "sites": 3,
        "values": {"clip_score": 25.1, "toxic": 0.058, "toxic_score": 0.0625, "perplexity": 20.04, "polite": 0.5},
    },
]


def test_a_score_is_no_share_and_a_share_is_written_in_percent() -> None:
    lines = summary(ROWS, "+clip_score")
    (row,) = (line for line in markdown(lines, None, "about").splitlines() if line.startswith("| lineas"))
    assert [cell.strip() for cell in row.split("|")[2:9]] == [
        "1.25 %", "3", "25.1", "5.8 %", "0.062", "20.0", "50.0 %",
    ]  # fmt: skip
    table = _table(lines, None, "clip_score")
    shown = {str(column.header): list(column.cells)[-1] for column in table.columns}
    assert (shown["clip score"], shown["perplexity"]) == ("25.1", "20.0")
