"""Sweeps: every point learned and judged once, wherever it runs and however often it is interrupted; the choice."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from console import LEARN, SOURCE, TARGET, check_refused, run

import lineas
from lineas import LinAcT, LinEAS
from lineas.evaluation.plan import Plan
from lineas.files import strict_json
from lineas.files.writing import TEMPORARY, locked
from lineas.learning.capture import backpropagate
from lineas.signals import restoring_handlers
from lineas.sweeping import Job, choose, points, run_jobs, summary
from lineas.sweeping import jobs as jobs_of_sweeps
from lineas.sweeping.report import markdown, plot
from lineas.sweeping.summary import chosen_point

GAMMAS = [0.0, 1e-3, 2e-3]
JUDGES = '''
import os
from pathlib import Path

def vowels(texts):
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) + 0.1 for text in texts]

def vowels_or_nothing(texts):
    if "BROKEN" in os.environ:
        raise RuntimeError("out of memory")
    return vowels(texts)

def glad(texts):
    """Return the share of two words of joy in a text, up to 1."""
    return [min(1.0, sum(word in text for word in ("sun", "smiled", "played", "happy")) / 2) for text in texts]

def heard(texts):
    """Say that texts are judged, if only once."""
    if Path("heard").exists():
        Path("heard").write_text("x")
        Path("heard").unlink()
    return vowels(texts)

def deadly(texts):
    """The first process that asks dies on the spot, and every later one is answered."""
    died = Path(os.environ["DIED"])
    if not died.exists():
        died.write_text(str(os.getpid()))
        os._exit(1)
    return vowels(texts)
'''


def jobs(
    folder: Path, judge: str = "judges_of_test:vowels", refit: bool = False, seeds: int = 1,
    strengths: tuple[float, ...] = (1.0,),
) -> list[Job]:  # fmt: skip
    plan = Plan(SOURCE.splitlines(), TARGET.splitlines(), {"toxic": judge}, sampling={"max_new_tokens": 4})
    rest: dict[str, Any] = {"refit": refit, "strengths": strengths, "dtype": "float32", "gammas": GAMMAS}
    rest |= {"source": SOURCE.splitlines(), "target": TARGET.splitlines()}
    dense = LinEAS(steps=9)
    return [
        Job(folder, "model", plan, dtype="float32"),
        *(Job(folder, "model", plan, method=dense, name="lineas", seed=seed, **rest) for seed in range(seeds)),
        Job(folder, "model", plan, method=LinAcT(), name="lin-act", **rest),
    ]


def nowhere(judged: Path) -> Job:
    """Return a job whose model does not exist."""
    source, target = ["a", "b"], ["c", "d"]
    return Job(judged / "s", "nowhere", Plan(), method=LinAcT(), name="lin-act", source=source, target=target)


@pytest.fixture
def judged(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A desk with classifiers that other processes find too."""
    (desk / "judges_of_test.py").write_text(JUDGES)
    (desk / "many.txt").write_text(SOURCE + TARGET)
    monkeypatch.syspath_prepend(str(desk))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(desk), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("DIED", str(desk / "died"))
    return desk


def rows(these: list[Job]) -> list[dict]:
    return [row for job in these for row in points(job.place)]


def plain(found: list[dict]) -> list[dict]:
    """Without the seconds that it took."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def test_every_point_is_learned_judged_and_there(judged: Path) -> None:
    these = jobs(judged / "sweep", refit=True)
    done: list[int] = []
    run_jobs(these, progress=done.append)
    found = rows(these)
    assert sum(done) == len(found) == 1 + 5 + 1
    assert [(row["method"], row["gamma"], row["refit"]) for row in found] == [
        ("untouched", None, False),
        ("lineas", 2e-3, False), ("lineas", 2e-3, True), ("lineas", 1e-3, False), ("lineas", 1e-3, True),
        ("lineas", 0.0, False),
        ("lin-act", None, False),
    ]  # fmt: skip
    for row in found[1:]:
        learned = lineas.Intervention.load(judged / "sweep" / row["folder"])
        assert learned.support() == row["support"]
        assert sorted(row["values"]) == sorted(these[1].plan.measures)
    sparse, freed = found[1:3]
    assert sparse["support"] == pytest.approx(freed["support"], abs=0.02) != 0
    assert freed["cost"] < sparse["cost"]


def test_a_recipe_that_refits_itself_is_walked_as_one_that_does_not(judged: Path) -> None:
    plain_one, refitting = (
        [replace(jobs(judged / name, refit=True)[1], method=method)]
        for name, method in (("plain", LinEAS(steps=9)), ("refitting", LinEAS(steps=9, gamma=1e-3, refit=True)))
    )
    run_jobs(plain_one)
    run_jobs(refitting)
    assert plain(rows(refitting)) == plain(rows(plain_one)) != []


def test_everything_is_judged_at_every_strength_and_goes_on_between_them(judged: Path) -> None:
    these = jobs(judged / "sweep", refit=True, strengths=(0.5, 1.0))
    run_jobs(these)
    found = rows(these)
    assert len(found) == 1 + 2 * (5 + 1) == sum(job.count for job in these)
    half, whole = found[1:3]
    assert (half["folder"], half["strength"]) == (whole["folder"], 0.5)
    assert 0 < half["values"]["kl"] < whole["values"]["kl"]
    file = these[1].place / "points.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:1] + lines[2:3]))  # the first lacks a strength, and so does the second
    run_jobs(these)
    again = {(row["gamma"], row["refit"], row["strength"]): row["values"] for row in rows(these[1:2])}
    assert again == {(row["gamma"], row["refit"], row["strength"]): row["values"] for row in found[1:11]}


def test_what_is_done_is_not_done_again_and_a_line_cut_off_is(judged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = jobs(judged / "whole")
    run_jobs(whole)
    cut = jobs(judged / "cut")
    run_jobs(cut)
    file = cut[1].place / "points.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1] + lines[2][:40])
    calls: list[float] = []
    learn = import_module("lineas.learning.gamma_path").learn
    monkeypatch.setattr(
        import_module("lineas.learning.gamma_path"), "learn", lambda *a, **k: calls.append(a[3].gamma) or learn(*a, **k)
    )
    shutil.rmtree(cut[1].place / "gamma-0.0")
    run_jobs(cut)
    assert calls == [0.0]
    assert plain(rows(cut)) == plain(rows(whole))


FOREIGN = [
    b"[1, 2]", b"{}", b"null", b"7", b'"text"', b"\xff\xfe", b"[" * 100_000,
    b'{"gamma": 0.0, "refit": false, "strength": 1.0}',
    b'{"gamma": [1], "refit": false, "strength": 1.0, "method": "lineas", "values": {}, "errors": {}}',
]  # fmt: skip


def test_a_line_that_no_sweep_wrote_is_passed_over_and_named(judged: Path) -> None:
    these = jobs(judged / "s")[:1]
    run_jobs(these)
    found, file = rows(these), these[0].place / "points.jsonl"
    (whole,) = file.read_bytes().splitlines()
    broken = [json.dumps(found[0] | change).encode() for change in ({"values": {"toxic": "high"}}, {"refit": "no"})]
    for line in FOREIGN + broken:
        file.write_bytes(line + b"\n" + whole + b"\n")
        with pytest.warns(UserWarning, match=r"line 1 of .*points\.jsonl is no point of a sweep; it is passed over"):
            assert rows(these) == found
        file.write_bytes(line)
        with pytest.warns(UserWarning, match=r"line 1 of .*points\.jsonl"):
            assert these[0].missing()
    with pytest.warns(UserWarning, match=r"line 1 of .*points\.jsonl"):
        run_jobs(these)
    with pytest.warns(UserWarning, match=r"line 1 of .*points\.jsonl"):
        assert rows(these) == found


def test_numbers_that_are_none_are_gaps_and_the_point_is_done(judged: Path) -> None:
    these = jobs(judged / "s")[:1]
    run_jobs(these)
    file = these[0].place / "points.jsonl"
    (point,) = rows(these)
    file.unlink()
    gap = point | {"values": point["values"] | {"toxic": math.nan}, "intervals": {"toxic": [math.nan, 1.0]}}
    jobs_of_sweeps._append(file, gap | {"cost": math.inf})
    assert strict_json.loads(file.read_bytes())["values"]["toxic"] is None
    (again,) = rows(these)
    assert "toxic" not in again["values"]
    assert "cost" not in again
    assert not these[0].missing()
    assert summary([again])[0].values.keys() == again["values"].keys() | ({"support", "seconds"} & again.keys())


def test_an_interruption_leaves_no_half_learned_point(judged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    these = jobs(judged / "s")
    whole = jobs(judged / "whole")
    run_jobs(whole)
    steps = 0

    def interrupting(*given: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return backpropagate(*given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("lineas.learning.lineas.backpropagate", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(these)
    assert [row["method"] for row in rows(these)] == ["untouched"]
    assert not list((judged / "s").rglob("intervention.json"))
    run_jobs(these)
    assert plain(rows(these)) == plain(rows(whole))


def test_a_point_of_which_a_measure_failed_is_judged_again_and_nothing_learned_anew(
    judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    these = jobs(judged / "s", "judges_of_test:vowels_or_nothing", refit=True, strengths=(0.5, 1.0))
    monkeypatch.setenv("BROKEN", "1")
    run_jobs(these)
    assert [list(row["errors"]) for row in rows(these)] == [["toxic"]] * 13
    monkeypatch.delenv("BROKEN")
    monkeypatch.setattr("lineas.sweeping.jobs.learn", None)
    monkeypatch.setattr(import_module("lineas.learning.gamma_path"), "learn", None)
    run_jobs(these)
    monkeypatch.undo()
    assert all("toxic" in row["values"] and not row["errors"] for row in rows(these))
    assert len(rows(these)) == 13


def test_what_a_sweep_learned_says_which_sentences_of_which_file(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gates, for example, can then be learned from them without further options."""
    code, _, err = run(capsys, *SWEEP, "--effect", "glad_score", "--gamma", "0", "--samples", "2", "--draws", "2")
    assert code == 0, err
    data = lineas.Intervention.load("s/lineas-1/gamma-0.0").facts["data"]["source"]
    assert (data["file"], data["count"]) == ("source.txt", 2)
    code, _, err = run(
        capsys, "gate", "--intervention", "s/lineas-1/gamma-0.0", "--control", "many.txt", "--out", "gated"
    )
    assert code == 0, err


def test_what_is_judged_again_keeps_the_seconds_of_its_learning(judged: Path) -> None:
    these = jobs(judged / "s")[1:2]
    run_jobs(these)
    before = rows(these)
    (these[0].place / "points.jsonl").unlink()
    run_jobs(these)
    assert [row["seconds"] for row in rows(these)] == [row["seconds"] for row in before]


def test_a_point_that_two_processes_made_counts_once(judged: Path) -> None:
    these = jobs(judged / "s")[:1]
    run_jobs(these)
    file = these[0].place / "points.jsonl"
    file.write_text(2 * file.read_text())
    assert len(points(these[0].place)) == 1


def test_processes_and_this_one_find_the_same(judged: Path) -> None:
    here, there = jobs(judged / "here", seeds=2), jobs(judged / "there", seeds=2)
    run_jobs(here)
    run_jobs(there, at_once=2)
    assert plain(rows(there)) == plain(rows(here))


def test_a_process_that_fails_is_heard_of(judged: Path) -> None:
    broken = nowhere(judged)
    with pytest.raises(lineas.LineasError, match="no model could be loaded from 'nowhere'"):
        run_jobs([broken, broken], at_once=2)


def test_a_process_that_is_killed_is_heard_of_and_the_same_goes_on(judged: Path) -> None:
    these = jobs(judged / "s", "judges_of_test:deadly")
    with pytest.raises(lineas.LineasError, match="a worker was killed, perhaps for want of memory; the same command"):
        run_jobs(these, at_once=2)
    run_jobs(these, at_once=2)
    assert len(rows(these)) == sum(job.count for job in these)


def test_ray_goes_on_where_a_killed_worker_ended(judged: Path) -> None:
    """Two workers; the first continuation that is judged kills its process. Every point is there in the end, once."""
    ray = pytest.importorskip("ray", reason="Ray has no wheel for this Python")
    with restoring_handlers():  # Ray handles TERM, and goes on doing so after its end
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="error")
    try:
        these = jobs(judged / "ray", "judges_of_test:deadly", seeds=2)
        run_jobs(these, where="ray")
        broken = nowhere(judged)
        with pytest.raises(lineas.LineasError, match=r"^no model could be loaded from 'nowhere'"):
            run_jobs([broken], where="ray")
    finally:
        ray.shutdown()
    assert (judged / "died").read_text() != str(os.getpid())
    here = jobs(judged / "here", seeds=2)
    run_jobs(here)
    assert plain(rows(these)) == plain(rows(here))


# -------------------------------------------------------------------------------------------------------- the choice


def made(method: str, gamma: float | None, seed: int, support: float, toxic: float, **more: float) -> dict:
    values = {"toxic": toxic, "perplexity": 20.0, **more}
    return {
        "method": method, "gamma": gamma, "refit": False, "strength": 1.0, "seed": seed, "values": values, "errors": {},
        **({} if method == "untouched" else {"support": support, "cost": 0.1, "folder": f"{method}-{gamma}-{seed}"}),
    }  # fmt: skip


FOUND = [
    made("untouched", None, 0, 0, 0.30),
    made("lineas", 0.0, 0, 1.0, 0.08), made("lineas", 0.0, 1, 1.0, 0.12),
    made("lineas", 1e-3, 0, 0.2, 0.10), made("lineas", 1e-3, 1, 0.1, 0.14),
    made("lineas", 1e-2, 0, 0.02, 0.25), made("lineas", 1e-2, 1, 0.01, 0.27),
]  # fmt: skip


def test_the_sparsest_within_the_tolerance_is_chosen() -> None:
    lines = summary(FOUND)
    assert [line.share for line in lines] == pytest.approx([0.0, 1.0, 0.9, 0.2])
    dense, sparse, sparsest = lines[1:]
    assert choose(lines, 0.2) is sparse
    assert choose(lines, 0.05) is dense
    assert choose(lines, 0.85) is sparsest
    assert sparse.values["support"] == pytest.approx(0.15)
    assert sparse.deviations["support"] == pytest.approx(0.0707, rel=1e-2)
    assert choose(summary(FOUND[1:]), 0.2) is None  # nothing to compare with


def test_of_strengths_that_do_the_job_the_least_is_chosen() -> None:
    weaker = [{**row, "strength": 0.75} for row in FOUND[3:5]]
    lines = summary([*FOUND, *weaker])
    assert [line.label for line in lines[-2:]] == ["lineas 0.01", "lineas 0.001 at 0.75"]
    assert choose(lines, 0.2) is lines[-1]
    assert chosen_point([*FOUND, *weaker], lines[-1], "toxic")["strength"] == 0.75
    away = [{**row, "strength": -row["strength"]} for row in [*FOUND[3:5], *weaker]]
    lines = summary([*FOUND[:3], *away])  # the opposite direction: -0.75 is less than -1
    assert choose(lines, 0.2) is next(line for line in lines if line.strength == -0.75)


def test_of_its_draws_the_one_nearest_to_the_mean_is_taken() -> None:
    three = [*FOUND, made("lineas", 1e-3, 2, 0.3, 0.11)]
    line = next(line for line in summary(three) if line.gamma == 1e-3)
    assert chosen_point(three, line, "toxic")["seed"] == 2


def test_a_method_that_makes_it_worse_is_not_the_best() -> None:
    found = [made("untouched", None, 0, 0, 0.05), made("lineas", 0.0, 0, 1, 0.02), made("lineas", 1e-3, 0, 0.2, 0.022)]
    found += [made("lineas", 1e-2, 0, 0.1, 0.11), made("lin-act", None, 0, 1, 0.12)]
    lines = summary(found)
    chosen = choose(lines, 0.2)
    assert chosen is not None
    assert chosen.gamma == 1e-3
    assert lines[-1].share == pytest.approx(-7 / 3)


def test_where_no_point_lowers_toxicity_none_is_chosen_and_what_should_rise_is_said() -> None:
    found = [made("untouched", None, 0, 0, 0.1), made("lineas", 0.0, 0, 1, 0.4), made("lineas", 1e-3, 0, 0.2, 0.1)]
    assert choose(summary(found), 0.2) is None
    found.append(made("lineas", 1e-2, 0, 0.1, 0.09))
    assert [line.share for line in summary(found, "+toxic")] == pytest.approx([0.0, 1.0, 0.0, -1 / 30])
    assert choose(summary(found, "+toxic"), 0.2) == summary(found, "+toxic")[1]


def test_a_concept_that_should_grow_counts_upwards() -> None:
    grown = [made("untouched", None, 0, 0, 0, concept=0.1), made("lineas", 0.0, 0, 1, 0, concept=0.9)]
    grown += [made("lineas", 1e-3, 0, 0.1, 0, concept=0.8)]
    assert [line.share for line in summary(grown)] == pytest.approx([0.0, 1.0, 0.875])


def test_the_effect_may_be_another_measure() -> None:
    scored = [made("untouched", None, 0, 0, 0, toxic_score=0.4), made("lineas", 0.0, 0, 1, 0, toxic_score=0.2)]
    scored += [made("lineas", 1e-3, 0, 0.1, 0, toxic_score=0.25)]
    assert [line.share for line in summary(scored, "toxic_score")] == pytest.approx([0.0, 1.0, 0.75])


def test_table_and_plot(tmp_path: Path) -> None:
    lines = summary(FOUND)
    table = markdown(lines, choose(lines, 0.2), "about")
    assert "| **lineas 0.001** | 15.00 % ± 7.1 |" in table
    assert "| 90 % |" in table
    assert plot(lines, tmp_path / "sweep.png").stat().st_size > 10_000
    unjudged = [replace(line, values={"support": 0.5, "cost": 1.0}) for line in lines]
    assert plot(unjudged, tmp_path / "costs.png").stat().st_size > 5_000


# ------------------------------------------------------------------------------------------------------- command line

SWEEP = (
    "sweep", "model", "--source", "source.txt", "--target", "target.txt", "--prompts", "many.txt",
    "--neutral", "target.txt", "--classifier", "judges_of_test:glad", "--effect", "+glad", "--steps", "6",
    "--dtype", "float32", "--out", "s",
)  # fmt: skip


def test_the_command_line_sweeps_chooses_and_goes_on(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (*SWEEP, "--gamma", "0", "3e-3", "--method", "lineas,mean-act", "--draws", "2", "--samples", "2")
    asked += ("--steps", "40")
    code, out, _ = run(capsys, *asked)
    assert code == 0
    told = json.loads((judged / "s" / "sweep.json").read_text())
    assert len(told["points"]) == 1 + 2 * 2 + 2
    chosen = told["chosen"]["line"]
    assert f"chosen: {chosen['method']}" in out
    support = lineas.Intervention.load("s/chosen").support()
    assert support == lineas.Intervention.load(judged / "s" / told["chosen"]["folder"]).support()
    assert (judged / "s" / "sweep.md").read_text().count("\n| ") >= 4
    assert (judged / "s" / "sweep.png").stat().st_size > 10_000
    before = {file: file.stat().st_mtime_ns for file in (judged / "s").rglob("*.safetensors")}
    code, _, _ = run(capsys, *asked)
    assert code == 0
    assert all(file.stat().st_mtime_ns == at for file, at in before.items() if "chosen" not in str(file))


def test_the_choice_keeps_its_calibration_and_says_what_it_changes(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*SWEEP, "--gamma", "0", "--steps", "40")
    code, out, err = run(capsys, *asked)
    assert code == 0, err
    said = next(line for line in out.splitlines() if line.startswith("chosen: "))
    lines = json.loads((judged / "s" / "sweep.json").read_text())["lines"]
    before, after = (100 * row["values"]["glad"] for row in lines)
    assert f"(glad {before:.1f} % -> {after:.1f} %)" in said
    place = judged / "s" / "chosen"
    lineas.Intervention.load(place).with_facts(calibration={"strength": 0.5, "reached": True}).save(
        place, overwrite=True
    )
    run(capsys, *asked)
    assert lineas.Intervention.load(place).calibrated_strength == 0.5
    code, out, _ = run(capsys, *asked, "--effect", "+kl")  # another choice measures nothing anew
    assert (code, "chosen: lineas 0 (kl " in out) == (0, True)


def test_a_signal_to_the_first_process_ends_all_and_leaves_no_half_learned_point(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real processes, a real signal; meanwhile no second run works there."""
    command = [sys.executable, "-c", "from lineas.cli import main; main()", *SWEEP, "--jobs", "2"]
    command += ["--gamma", "0", "1e-3", "--steps", "100000", "--classifier", "judges_of_test:heard"]
    os.mkfifo(judged / "heard")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        (judged / "heard").read_text()  # one worker judges the untouched model, the other learns
        code, _, second = run(capsys, *SWEEP)
        assert (code, "another run works in s; wait until it has ended" in second) == (2, True)
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.splitlines()[-1].endswith("the same command goes on in s.")
    assert "Traceback" not in err
    with locked(judged / "s"):  # no worker holds it any more
        assert not list((judged / "s").rglob("intervention.json"))
        assert not list((judged / "s").rglob(f"{TEMPORARY}*"))


def test_single_neurons_are_selected_where_whole_sites_weigh_nothing(
    judged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*SWEEP, "--gamma", "3e-3", "--lambda-g", "0")
    code, _, _ = run(capsys, *asked)
    assert code == 0
    (point,) = json.loads((judged / "s" / "sweep.json").read_text())["points"][1:]
    swept = lineas.Intervention.load(judged / "s" / point["folder"])
    same = (*LEARN[:-2], "--optimizer", "relative", "--steps", "6", "--dtype", "float32", "--gamma", "3e-3")
    run(capsys, *same, "--lambda-g", "0", "--out", "alone")
    alone = lineas.Intervention.load("alone")
    assert swept.support() == alone.support() == point["support"] > 0
    run(capsys, *same, "--out", "grouped")
    assert lineas.Intervention.load("grouped").support() != swept.support()


def test_pictures_are_swept_by_what_they_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = ("--source", "lineas:night/source", "--target", "lineas:night/target", "--samples", "4")
    judging = ("--prompts", "lineas:night/prompts", "--limit", "4", "--shows", "at night", "--out", str(tmp_path / "s"))
    code, _, _ = run(
        capsys, "sweep", "shapes", *sides, *judging, "--steps", "4", "--gamma", "0", "1", "--tolerance", "0"
    )
    assert code == 0
    told = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert [(row["method"], row["gamma"]) for row in told["points"]] == [
        ("untouched", None),
        ("lineas", 1),
        ("lineas", 0),
    ]
    untouched, nothing, dense = told["points"]
    assert nothing["support"] == 0
    assert nothing["values"] == untouched["values"]
    assert dense["values"]["concept"] > untouched["values"]["concept"]
    assert told["chosen"]["line"]["gamma"] == 0


WRONG = [
    (("--limit", "0"), "--limit must be at least 1, not 0."),
    (("--gamma", "-1"), "gamma must be 0 or more, not -1.0"),
    (("--gamma", "1e-3", "1e-3"), "each gamma once"),
    (("--strength", "0", "1"), "takes numbers other than 0, not 0 1"),
    (("--method", "lineas,magic"), "not 'magic'"),
    (("--method", "lin-act", "--lambda-g", "0"), "for the method lineas, which is not among the methods lin-act"),
    (("--effect", "toxc"), "--effect is one of what is measured, perhaps with + before it, not 'toxc': glad,"),
    (("--effect", "+toxc"), "not '+toxc': glad, glad_score, distinct_1,"),
    (("--effect", "concept"), "not 'concept': glad, glad_score, distinct_1,"),
    (("--effect", "kl", "--measures", "glad"), "not 'kl': glad, glad_score, distinct_1,"),
    (("--effect", "toxic", "--measures", "perplexity"), "not 'toxic': perplexity, kl."),
    (("--lambda-g", "-1"), "--lambda-g must be 0 or more, not -1"),
    (("--measures", "beauty"), "beauty is not among glad, perplexity"),
    (("--measures", "concept"), "concept needs --shows"),
    (("--seeds", "0"), "--seeds must be at least 1"),
    (("--draws", "0"), "--draws must be at least 1"),
    (("--where", "the-moon"), "is processes or ray, not 'the-moon'"),
    (("--tolerance", "1"), "is a share from 0 to below 1"),
    (("--classifier", "judges_of_test:nothing"), "nothing"),
    (("--samples", "99"), "99 samples were asked for"),
    (("--out", "source.txt"), "is what the command reads"),
    (("--samples", "-1"), "--samples must be at least 1, not -1"),
    (("--max-length", "0"), "--max-length must be at least 1, not 0"),
    (("--sites", "nothing.*"), "nothing.*"),
    (("--dtype", "float99"), "float99"),
    (("--measures", "toxicity"), "toxic needs --prompts and a --classifier"),
    (("--classifier", "none"), "none stands alone"),
    (("--shows", "a cat"), "leave out --shows"),
    (("--out", "broken"), "broken exists and is not a sweep"),
    (("--out", "another", "--force"), "another exists and is not a sweep"),
]


@pytest.mark.parametrize(("more", "sentence"), WRONG, ids=[" ".join(more) for more, _ in WRONG])
def test_mistakes_are_one_sentence(
    judged: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], sentence: str
) -> None:
    for folder, told in (("broken", "{bad"), ("another", '{"program": "train.py"}')):
        (judged / folder).mkdir()
        (judged / folder / "sweep.json").write_text(told)
    check_refused(capsys, judged, sentence, *SWEEP, *more)


def test_a_sweep_of_other_settings_is_not_gone_on_with(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *SWEEP, "--gamma", "3e-3")
    check_refused(capsys, judged, "holds a sweep of other settings", *SWEEP, "--gamma", "4e-3")
    (judged / "judges_of_test.py").write_text(JUDGES + "\n# another judge of the same name\n")
    check_refused(capsys, judged, "holds a sweep of other settings", *SWEEP, "--gamma", "3e-3")
    (judged / "s" / "notes.txt").write_text("what I saw")
    code, _, _ = run(capsys, *SWEEP, "--gamma", "4e-3", "--force")
    assert code == 0
    assert (judged / "s" / "notes.txt").exists()
    assert [row["gamma"] for row in json.loads((judged / "s" / "sweep.json").read_text())["points"]] == [None, 4e-3]
