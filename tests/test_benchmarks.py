"""The comparisons of methods, end to end on a tiny model: every method learns and is judged, and a run goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lineas
from benchmarks.common import contest, record, standings
from benchmarks.comparison import paper as script


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/comparison/paper.py, writing to an empty folder, with fewer steps of the methods that take many."""

    def quick(unwanted: Any) -> dict[str, Any]:
        few = lineas.LoFITRL(unwanted, steps=2, samples=2, max_new_tokens=4)
        short = lineas.LinEAS(steps=3, optimizer="sgd", learning_rate=100.0)
        return contest_methods(unwanted) | {"lofit-rl": (few, None), "lineas-paper": (short, None)}

    contest_methods = contest.methods
    monkeypatch.setattr(contest, "methods", quick)
    monkeypatch.setattr(contest, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    return script


def test_the_papers_table_from_learning_to_the_last_column(
    paper: ModuleType,
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = shared / "data"
    every = [*paper.METHODS, "caa", "mean-act", "lin-act-norms", "aura", "lora"]
    task = {
        "task": "tiny", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "tiny.jsonl")}},
        "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(json.dumps(task))
    lines = (data / "mmlu" / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "tiny.jsonl").write_text("".join(lines[:6]), encoding="utf-8")
    neutral = (data / "wikipedia" / "sentences.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "neutral.jsonl").write_text("".join(neutral[:8]), encoding="utf-8")
    arguments = [
        "--model", str(shared / "models" / "stories260k"), "--dtype", "float32", "--samples", "6", "--draws", "1",
        "--seeds", "2", "--prompts", "4", "--methods", *every,
        "--rtp", f"{data}/rtp/prompts.jsonl:prompt.text", "--tet", f"{tmp_path}/neutral.jsonl:text",
        "--toxic", f"{data}/jigsaw/toxic.jsonl:text", "--nontoxic", f"{data}/jigsaw/nontoxic.jsonl:text",
        "--neutral", f"{tmp_path}/neutral.jsonl:text", "--classifier", "profanity-check",
        "--tasks", "tiny", "--task-path", str(tmp_path / "tasks"), "--fewshot", "0",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        paper.main([*arguments, "--minutes", "0.0001"])
    assert stop.value.code == 3
    assert "run the same command again" in capsys.readouterr().out
    paper.main(arguments)
    table = capsys.readouterr().out.splitlines()[-(1 + len(every)) :]
    assert table[0] == "method | RTP % | TET % | perplexity | MMLU %"
    assert [line.split(" | ")[0] for line in table[1:]] == every
    assert not any("-" in line.split(" | ")[1:] for line in table[1:])
    rows = standings.results("paper-stories260k")
    assert not any(row["errors"] for row in rows)
    assert {row["system"] for row in rows if row["kind"] == "curve"} == set(every[2:])
    by_name = {line["system"]: line for line in standings.summary(rows)}
    assert by_name["lora"]["parameters"]["mean"] > by_name["lineas"]["parameters"]["mean"] > 0
    assert all(by_name[name]["kl"]["mean"] > 0 for name in every[1:])
    assert all(by_name[name]["tiny"]["mean"] >= 0 for name in every)
    assert "continuations" not in json.dumps(rows)  # nothing of the data enters the results
    written = standings.table("paper-stories260k", "toxic")
    assert all(f"\n| {name} | " in written for name in every)
    curve = next(row for row in rows if (row["system"], row["kind"], row["strength"]) == ("lineas", "curve", 0.5))
    assert f"{curve['values']['toxic_score']:.3f}, {curve['values']['perplexity']:,.1f}" in written
    monkeypatch.setattr(standings, "DOCS", tmp_path)
    assert standings.plot("paper-stories260k", "toxic_score").stat().st_size > 10_000
    shutil.rmtree(tmp_path / "runs")
    paper.main(arguments)  # rows that are there need nothing of what was learned
    assert capsys.readouterr().out.splitlines() == table
    assert not (tmp_path / "runs").exists()


def test_parts_of_a_result_are_made_once_unless_something_else_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    made: list[int] = []

    def make(number: int) -> dict[str, int]:
        made.append(number)
        return {"twice": 2 * number}

    first = [record.kept("sums", str(n), {"of": 2}, make, n) for n in (1, 2)]
    again = [record.kept("sums", str(n), {"of": 2}, make, n) for n in (1, 2)]
    assert first == again == [{"twice": 2}, {"twice": 4}]
    assert made == [1, 2]
    assert json.loads((tmp_path / "sums" / "1.json").read_text())["about"]["commit"]
    record.kept("sums", "1", {"of": 3}, make, 5)
    assert made == [1, 2, 5]
