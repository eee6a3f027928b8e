"""Benchmarks: comparisons end to end on a tiny model, what is committed is found again, and who is judged on what."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Hashable
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lineas
from benchmarks import pages
from benchmarks.common import contest, curves, markdown, record, splits, standings
from benchmarks.comparison import archaic, detoxification, recipes, toxicity
from benchmarks.comparison import paper as script
from benchmarks.images import images
from benchmarks.sparsity import composition, gates, sparsity
from lineas.prompts import draw, read_prompts

BENCHMARKS = list(dict.fromkeys(use.benchmark for use in splits.USES))


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/comparison/paper.py, writing to an empty folder, with fewer steps of the methods that take many."""
    few = {"steps": 2, "samples": 2, "max_new_tokens": 4}
    short = {"steps": 3, "optimizer": "sgd", "learning_rate": 100.0}
    monkeypatch.setitem(contest.METHODS, "lofit-rl", (lambda unwanted: lineas.LoFITRL(unwanted, **few), None))
    monkeypatch.setitem(contest.METHODS, "lineas-paper", (lambda unwanted: lineas.LinEAS(**short), None))
    monkeypatch.setattr(record, "RUNS", tmp_path / "runs")
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
    rows = standings.ordered([part.made for part in record.parts_of("paper-stories260k")])
    assert not any(row["errors"] for row in rows)
    assert {row["system"] for row in rows if row["kind"] == "curve"} == set(every[2:])
    by_name = {line["system"]: line for line in standings.summary(rows)}
    assert by_name["lora"]["parameters"]["mean"] > by_name["lineas"]["parameters"]["mean"] > 0
    assert all(by_name[name]["kl"]["mean"] > 0 for name in every[1:])
    right = {name: 6 * by_name[name]["tiny"]["mean"] for name in every}  # of six questions
    assert all(count == pytest.approx(round(count)) for count in right.values())
    assert all(row["metrics"] == {"tiny": "acc"} for row in rows if row["kind"] == "tasks")
    assert "continuations" not in json.dumps(rows)  # nothing of the data enters the results
    written = standings.table(rows, "toxic")
    assert all(f"\n| {name} | " in written for name in every)
    curve = next(row for row in rows if (row["system"], row["kind"], row["strength"]) == ("lineas", "curve", 0.5))
    assert f"{curve['values']['toxic_score']:.3f}, {curve['values']['perplexity']:,.1f}" in written
    monkeypatch.setattr(record, "DOCS", tmp_path)
    assert standings.plot("paper-stories260k", "toxic_score").stat().st_size > 10_000
    shutil.rmtree(tmp_path / "runs")
    paper.main(arguments)  # rows that are there need nothing of what was learned
    assert capsys.readouterr().out.splitlines() == table
    assert not (tmp_path / "runs").exists()


def test_parts_of_a_result_are_made_once_unless_something_else_is_asked(tmp_path: Path) -> None:
    measured: list[int] = []

    def part(number: int, asked: dict[str, Any]) -> record.Part:
        def measure() -> dict[str, int]:
            measured.append(number)
            return {"twice": 2 * number}

        return record.Part(tmp_path / "sums" / f"{number}.json", asked, measure, lambda made: made["twice"] != 6)

    first = [record.get_or_make(part(number, {"of": (2, 2)})) for number in (1, 2)]
    again = [record.get_or_make(part(number, {"of": (2, 2)})) for number in (1, 2)]
    assert [one.made for one in first] == [one.made for one in again] == [{"twice": 2}, {"twice": 4}]
    assert measured == [1, 2]
    held = json.loads((tmp_path / "sums" / "1.json").read_text())
    assert list(held) == ["about", "asked", "made"]
    assert held["about"]["commit"]
    record.get_or_make(part(1, {"of": (3, 3)}))
    assert measured == [1, 2, 1]
    record.get_or_make(part(3, {"of": (2, 2)}))
    record.get_or_make(part(3, {"of": (2, 2)}))  # what is not whole is measured anew
    assert measured == [1, 2, 1, 3, 3]


def test_an_interruption_discards_the_part_that_is_being_made(tmp_path: Path) -> None:
    def measure() -> None:
        raise KeyboardInterrupt

    part = record.Part(tmp_path / "part.json", {}, measure)
    with pytest.raises(KeyboardInterrupt):
        record.get_or_make(part)
    assert not part.file.exists()


def test_every_committed_result_is_read_in_one_shape() -> None:
    files = list(record.RESULTS.rglob("*.json"))
    assert len(files) > 100
    for file in files:
        result = record.read(file)
        assert {"commit", "date", "machine", "python", "torch", "transformers"} <= result.about.keys(), file
        assert isinstance(result.asked, dict), file
        assert result.made, file
        assert isinstance(result.made, list) or not {"about", "asked", "options", "key"} & result.made.keys(), file


def found_parts(name: str, parts: list[record.Part]) -> list[Any]:
    """Return what was made of all parts, in their order; they are exactly the committed ones."""
    assert {part.file for part in parts} == set((record.RESULTS / name).glob("*.json"))
    results = [part.find() for part in parts]
    assert all(results), [part.file.name for part, result in zip(parts, results) if result is None]
    return [result.made for result in results if result]


def committed(name: str) -> tuple[argparse.Namespace, Any]:
    """Return the options of a committed result, and what it says."""
    result = record.read(record.RESULTS / f"{name}.json")
    return argparse.Namespace(**result.asked), result.made


def test_the_committed_gates_are_found_and_summed_up() -> None:
    options, made = committed("gates")
    assert gates.summary(found_parts("gates", gates.plan(options))) == made["summary"]


def test_the_committed_compositions_are_found_and_summed_up() -> None:
    options, made = committed("composition")
    cases, parts = zip(*composition.plan(options))
    rows = [case | row for case, part in zip(cases, found_parts("composition", list(parts))) for row in part]
    assert composition.summary(rows).items() <= made.items()


def test_the_committed_pictures_are_found_and_summed_up() -> None:
    pytest.importorskip("diffusers")
    options, made = committed("images")
    parts = images.plan(lineas.load(options.model), options)
    by_name = dict(zip(parts, found_parts("images", list(parts.values()))))
    measured = [curve for name in images.CONCEPTS for curve in by_name[name]]
    assert images.summary(measured) == made["summary"]
    paths: dict[str, list[dict]] = {name: [] for name in images.PATHS}
    for point, (name, _) in images.POINTS.items():
        paths[name] += [row | {"dense": images.dense_there(measured, row, name)} for row in by_name[point]]
    assert paths == made["paths"]


def test_the_committed_points_along_gamma_are_found_and_compared(shared: Path) -> None:
    options, made = committed("sparsity")
    own = {key: value for key, value in vars(options).items() if key not in ("gammas", "sites")}
    jobs = sparsity.plan(argparse.Namespace(**own, jobs=1, only=None))
    points = [point for part in found_parts("sparsity", [part for _, part in jobs]) for point in part["points"]]
    learned = [line for line in made["lines"] if line["method"] != "untouched"]
    assert len(learned) == 13
    for line in learned:
        assert sparsity.against_dense(line, points) == line["against_dense"]


@pytest.mark.parametrize(
    ("benchmark", "arguments"),
    [(toxicity, []), (archaic, ["--draws", "2", "--seeds", "2", "--prompts", "300"])],
    ids=["toxicity", "archaic"],
)
def test_the_committed_rows_of_comparisons_are_found(
    benchmark: Any,
    arguments: list[str],
    shared: Path,
    smollm2: lineas.TextModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "RUNS", tmp_path)
    name = benchmark.__name__.rpartition(".")[-1]
    about = record.parts_of(name)[0].about
    monkeypatch.setattr(contest, "packages", lambda: {key: about[key] for key in ("lineas", "torch", "transformers")})
    parts = {part.file: part for part in benchmark.contest(contest.arguments(None).parse_args(arguments)).parts()}
    files = list((record.RESULTS / name).glob("*.json"))
    assert len(files) > 20
    assert not [file.name for file in files if parts[file].find() is None]


def test_the_other_committed_summaries_are_those_of_their_rows() -> None:
    for file in record.RESULTS.glob("recipes-*.json"):
        made = record.read(file).made
        assert recipes.summary(made["rows"]) == made["summary"]
    made = committed("detoxification")[1]
    assert detoxification.summary(made["untouched"], made["draws"]) == made["summary"]


def shared_rows(benchmark: str, identity: Callable[[str, int], Hashable]) -> dict[str, int]:
    """Count the rows that serve for a purpose though the same draw of a benchmark uses them for an earlier one.

    Args:
        benchmark: name of its module.
        identity: what makes a row of a data set the same as another.

    Returns:
        number of rows over all draws, each once, by both purposes and the data set, as in `splits.SHARED`.
    """

    def taken(use: splits.Use, number: int) -> set[tuple[str, int]]:
        return {(use.data, row) for row in splits.rows(use.benchmark, use.purpose, use.data, number)}

    chosen_on = splits.CHOSEN_ON.get(benchmark, ())
    choices = [use for use in splits.USES if use.benchmark in chosen_on and not use.rest]
    chosen = {row for use in choices for number in range(use.draws) for row in taken(use, number)}
    mine = [use for use in splits.USES if use.benchmark == benchmark]
    found: dict[str, set[tuple[str, int]]] = {}
    for number in range(max(use.draws for use in mine)):
        rows = {"choosing": chosen, "learning": set(), "judging": set()}
        for use in mine:
            rows[use.purpose] |= taken(use, number)
        for earlier, later in combinations(rows, 2):
            used = {(data, identity(data, row)) for data, row in rows[earlier]}
            for data, row in rows[later]:
                if (data, identity(data, row)) in used:
                    key = f"{earlier}, {later}: {data.partition('/')[0]}"
                    found.setdefault(key, set()).add((data, row))
    return {key: len(rows) for key, rows in found.items()}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_no_row_serves_for_two_of_learning_choosing_and_judging(benchmark: str) -> None:
    known = splits.SHARED[benchmark].rows if benchmark in splits.SHARED else {}
    assert shared_rows(benchmark, lambda data, row: row) == known


@pytest.mark.parametrize("benchmark", [name for name in BENCHMARKS if name not in ("paper", "images")])
def test_no_text_serves_for_two_of_learning_choosing_and_judging(benchmark: str, shared: Path) -> None:
    known = splits.SHARED.get(benchmark, splits.Shared({}, ""))
    texts = shared_rows(benchmark, lambda data, row: splits.read(data)[row])
    assert texts == {key: count + known.repeated.get(key, 0) for key, count in known.rows.items()}


def test_no_picture_that_is_judged_is_learned_from() -> None:
    pytest.importorskip("PIL")
    for concept in images.CONCEPTS.values():
        for number in range(3):
            source, target, drawn = images.sides(concept, number, 48)
            assert not {*source, *target} & {*drawn}


def test_what_serves_twice_is_said_with_its_numbers_on_a_page() -> None:
    text = "".join(file.read_text() for file in (record.ROOT / "README.md", *record.DOCS.rglob("*.md")))
    for benchmark, known in splits.SHARED.items():
        assert known.sentence.format(*known.rows.values()) in text, benchmark


def test_trials_with_fewer_prompts_drew_others() -> None:
    trial = random.Random(0).sample(range(splits.DATA["rtp"].size), 300)  # as `lineas.prompts.draw` does
    assert len({*trial} & {*splits.rows("toxicity", "judging", "rtp")}) == 122
    assert "122 of" in (record.DOCS / "evidence" / "comparison.md").read_text()


@pytest.mark.parametrize(
    "name", [name for name, data in splits.DATA.items() if data.source or name == "archaic/beginnings"]
)
def test_data_sets_have_the_size_that_rows_are_counted_with(name: str, shared: Path) -> None:
    assert len(splits.read(name)) == splits.DATA[name].size


def test_draws_are_those_of_lineas(shared: Path) -> None:
    toxic, wikipedia = (
        read_prompts(f"{splits.FOLDER}/{name}.jsonl:text") for name in ("jigsaw/toxic", "wikipedia/sentences")
    )
    assert splits.jigsaw("detoxification", 2)[0] == draw(toxic, 32, 2)  # as `lineas learn --samples 32 --seed 2` does
    assert splits.jigsaw("sparsity", 3, 16)[0] == draw(toxic, 16, 203)
    assert splits.take("archaic", "judging", "wikipedia") == draw(wikipedia, 500, 0)
    held_out = splits.take("recipes", "judging", "jigsaw/toxic", 1)
    assert held_out == draw([text for text in toxic if text not in draw(toxic, 32, 1)], 64, 1)


def test_more_rows_than_a_benchmark_has_are_refused() -> None:
    assert len(splits.rows("sparsity", "judging", "rtp", count=1440)) == 1440
    with pytest.raises(lineas.LineasError, match="sparsity has 1440 rows of rtp for judging, not 1441"):
        splits.rows("sparsity", "judging", "rtp", count=1441)
    with pytest.raises(lineas.LineasError, match="recipes has 600 rows of rtp for judging, not 601"):
        splits.rows("recipes", "judging", "rtp", count=601)


def test_tables_are_written_without_importing_torch() -> None:
    code = "import sys; from benchmarks import pages; print(*map(pages.written, pages.TABLES.values()))"
    command = [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"]
    run = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("<sub>`python -m benchmarks.") == len(pages.TABLES) + 1  # recipes.py has two models


def test_a_table_without_a_result_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=r"no result of demo_images .* python -m benchmarks\.images\.demo_images"):
        pages.written("images.demo_images")


def test_where_a_curve_crosses_a_level() -> None:
    rising = [{"strength": s, "effect": e} for s, e in ((0.0, 0.1), (0.5, 0.3), (1.0, 0.3), (2.0, 0.7))]

    def at(rows: list[dict], level: float, sign: int) -> float | None:
        there = curves.crossing(rows, "effect", level, sign, ["strength"])
        return None if there is None else there["strength"]

    assert [at(rising, level, 1) for level in (0.2, 0.3, 0.5)] == pytest.approx([0.25, 0.5, 1.5])
    assert at(rising, 0.05, 1) == 0.0  # reached before anything is done
    assert at(rising, 0.8, 1) is None
    falling = [row | {"effect": -row["effect"]} for row in rising]
    assert at(falling, -0.5, -1) == pytest.approx(1.5)
    noisy = [{"strength": s, "effect": e} for s, e in enumerate((0.9, 0.4, 0.6, 0.2))]
    assert [row["effect"] for row in curves.never_rising(noisy, "effect")] == pytest.approx([0.9, 0.5, 0.5, 0.2])


def test_numbers_in_tables() -> None:
    assert markdown.table(("a", "b"), [("1", "")]) == "| a | b |\n| --- | --- |\n| 1 |  |"
    assert markdown.change({"mean": -0.25, "standard_error": 0.125}, 2) == "-0.25 ± 0.12"


def test_every_call_of_the_command_line_writes_a_file_of_its_own(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(verb: str, *options: str) -> None:
        file = Path(options[options.index("--json") + 1])
        assert not file.exists()  # lineas overwrites none
        values = {"toxic": 0.0, "toxic_score": 0.1, "perplexity": 20.0, "kl": 0.0}
        row = {"values": values, "by_seed": {"toxic": [0.0]}}
        file.write_text(
            json.dumps({"cost": [2.0, 1.0], "seconds": 3.0, "divergence": 0.02} if verb == "learn" else {"rows": [row]})
        )

    monkeypatch.setattr(detoxification, "lineas", call)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["detoxification", "--draws", "3", "--prompts", "5"])
    detoxification.main()
    result = record.read(tmp_path / "detoxification.json")
    assert [row["seed"] for row in result.made["draws"]] == [0, 1, 2]
    assert result.asked["prompts"] == 5
    assert "mean of 3 draws" in detoxification.table(result)
