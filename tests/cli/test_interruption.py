"""Ctrl-C, TERM and a closed terminal in every verb: the exit code, the sentence, what is kept and what is not left."""

from __future__ import annotations

import importlib
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from console import LEARN, run

import lineas
from lineas import signals
from lineas.cli import VERBS, main
from lineas.learning.capture import backpropagate

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
MORE = (*LEARN[:-1], "5000", "--dtype", "float32", "--force")


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sends this process a signal when something is called for the n-th time."""

    def at(place: str, number: int = TERM, call: int = 1, then: Any = None) -> None:
        home, _, name = place.rpartition(".")
        module = importlib.import_module(home)
        original, calls = getattr(module, name), 0

        def interrupted(*given: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                signal.raise_signal(number)
            return (then or original)(*given, **options)

        monkeypatch.setattr(module, name, interrupted)

    return at


STEP = "lineas.learning.lineas.backpropagate"
OF_TEXTS = ("--prompts", "source.txt", "--classifier", "none")
SIDES = ("--source", "source.txt", "--target", "target.txt")
IN_EVERY_VERB = {
    "learn": (LEARN[1:], "lineas.cli.common.load"),
    "generate": (("model", "--intervention", "polite", "--prompt", "a"), "lineas.cli.common.load"),
    "paint": (
        ("shapes", "--intervention", "polite", "--prompt", "a", "--out", "x"),
        "lineas.intervention.artifact.read",
    ),
    "show": (("polite",), "lineas.intervention.artifact.read"),
    "evaluate": (("model", "--neutral", "source.txt"), "lineas.cli.common.load"),
    "compose": (("polite", "formal", "--out", "x"), "lineas.intervention.artifact.read"),
    "sweep": (("model", *SIDES, "--neutral", "source.txt", "--out", "x"), "lineas.cli.sweep.read_prompts"),
    "calibrate": (
        ("--intervention", "polite", "--out", "x", "--neutral", "source.txt", "--max-damage", "ppl+5%"),
        "lineas.cli.common.load",
    ),
    "gate": (
        ("--intervention", "polite", *SIDES[:2], "--control", "target.txt", "--out", "x"),
        "lineas.cli.common.load",
    ),
    "report": (("--intervention", "polite", "--out", "x.html"), "lineas.intervention.artifact.read"),
    "fold": (("model", "--intervention", "polite", "--out", "x"), "lineas.cli.common.load"),
    "export": (("polite", "--out", "x.gguf"), "lineas.intervention.artifact.read"),
    "demo": (("model", "--out", "x"), "lineas.cli.common.load"),
    "serve": (("model", "--intervention", "polite"), "lineas.intervention.artifact.read"),
    "lm-eval": (("--tasks", "none"), "lineas.cli.lm_eval.register"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_ends_by_a_signal_with_its_code_and_says_that_nothing_was_written(
    desk: Path, capsys: pytest.CaptureFixture[str], interrupt: Callable[..., None], verb: str
) -> None:
    arguments, place = IN_EVERY_VERB[verb]
    number = (INT, TERM, HUP)[list(VERBS).index(verb) % 3]
    before = sorted(desk.rglob("*"))
    interrupt(place, number)
    code, _, err = run(capsys, verb, *arguments)
    assert (code, err.splitlines()[-1]) == (128 + number, "interrupted; nothing was written.")
    assert "Traceback" not in err
    assert sorted(desk.rglob("*")) == before
    assert signal.getsignal(TERM) == signal.SIG_DFL


def test_help_knows_every_verb_as_its_own_docstring_does() -> None:
    for name, verb in VERBS.items():
        module = name.replace("-", "_")
        function = getattr(importlib.import_module(f"lineas.cli.{module}"), module)
        assert verb.help == function.__doc__.split("\n\n")[0], name


@pytest.mark.parametrize("number", [INT, TERM, HUP])
def test_an_unfinished_learning_goes_beside_the_finished_one(
    desk: Path, capsys: pytest.CaptureFixture[str], interrupt: Callable[..., None], number: int
) -> None:
    run(capsys, *LEARN, "--dtype", "float32")
    finished = {file.name: file.read_bytes() for file in (desk / "calm").iterdir()}
    interrupt(STEP, number, call=5)
    code, out, err = run(capsys, *MORE, "--json", "told.json")
    assert code == 128 + number
    assert err.splitlines()[-1] == "interrupted after 4 of 5000 steps; what was learned is in calm.interrupted."
    assert "learned calm" not in out
    assert not (desk / "told.json").exists()
    assert {file.name: file.read_bytes() for file in (desk / "calm").iterdir()} == finished
    half = lineas.Intervention.load("calm.interrupted")
    assert half.facts["interrupted"] == {"done": 4, "of": 5000}
    assert len(half.facts["cost"]) == 4


def test_what_is_unfinished_says_so_wherever_it_is_looked_at(
    desk: Path, capsys: pytest.CaptureFixture[str], interrupt: Callable[..., None]
) -> None:
    for name in ("calm.interrupted", "calm.interrupted-3"):
        (desk / name).mkdir()
        (desk / name / "mine.txt").write_text("ten years")
    interrupt(STEP, call=5)
    assert "in calm.interrupted-2." in run(capsys, *MORE)[2]
    assert not (desk / "calm").exists()
    assert [file.name for file in (desk / "calm.interrupted").iterdir()] == ["mine.txt"]
    half = "calm.interrupted-2"
    assert "interrupted while learning, after 4 of 5000 steps" in run(capsys, "show", half)[1]
    assert "**Interrupted while learning, after 4 of 5000 steps.**" in (desk / half / "README.md").read_text()
    assert lineas.Intervention.load(half).at(0.5).unfinished == "4 of 5000 steps"
    assert lineas.Intervention.load("polite").unfinished is None
    code, _, err = run(capsys, "fold", "model", "--intervention", half, "--out", "folded")
    assert code == 0
    assert "learning of this intervention was interrupted after 4 of 5000 steps" in " ".join(err.split())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the thread that draws the bar
@pytest.mark.filterwarnings("default:interrupted after 4 of 5000 steps")
def test_a_terminal_that_is_gone_costs_nothing(
    desk: Path, interrupt: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        gone = False

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    terminal, original = Terminal(), backpropagate
    monkeypatch.setattr("sys.stderr", terminal)
    interrupt(STEP, HUP, call=5, then=lambda *given: setattr(terminal, "gone", True) or original(*given))
    with pytest.raises(SystemExit) as end:
        main([*MORE])
    assert end.value.code == 129
    assert lineas.Intervention.load("calm.interrupted").unfinished == "4 of 5000 steps"


def test_without_a_whole_step_nothing_is_written(
    desk: Path, capsys: pytest.CaptureFixture[str], interrupt: Callable[..., None]
) -> None:
    before = sorted(desk.rglob("*"))
    interrupt(STEP)
    code, _, err = run(capsys, *MORE)
    assert (code, err.splitlines()[-1]) == (143, "interrupted; nothing was written.")
    assert sorted(desk.rglob("*")) == before


def test_a_second_signal_while_saving_ends_at_once_and_leaves_nothing(
    desk: Path, capsys: pytest.CaptureFixture[str], interrupt: Callable[..., None]
) -> None:
    before = sorted(desk.rglob("*"))
    interrupt(STEP, INT, call=3)
    interrupt("lineas.intervention.artifact.save_file", TERM)
    code, _, err = run(capsys, *MORE)
    assert (code, err.splitlines()[-1]) == (130, "interrupted; nothing was written.")
    assert sorted(desk.rglob("*")) == before


def test_a_refit_that_is_interrupted_counts_both_passes(
    desk: Path, capsys: pytest.CaptureFixture[str], interrupt: Callable[..., None]
) -> None:
    for call in (3, 9):
        interrupt(STEP, call=call)
        run(capsys, *LEARN[:-1], "6", "--dtype", "float32", "--gamma", "1e-3", "--refit")
    found = [lineas.Intervention.load(name).facts for name in ("calm.interrupted", "calm.interrupted-2")]
    assert [facts["interrupted"] for facts in found] == [{"done": 2, "of": 12}, {"done": 8, "of": 12}]


@pytest.mark.parametrize(("more", "half", "steps"), [(("model",), "polite", 5), (("--images",), "night", 20)])
def test_a_demo_that_is_interrupted_judges_and_saves_no_half(
    desk: Path,
    capsys: pytest.CaptureFixture[str],
    interrupt: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    half: str,
    steps: int,
) -> None:
    monkeypatch.setattr("lineas.cli.demo.classifier", lambda name: None)
    interrupt(STEP, INT, call=2)
    code, _, err = run(capsys, "demo", *more, "--out", "d")
    assert (code, err.splitlines()[-1]) == (
        130,
        f"interrupted after 1 of {steps} steps; what was learned is in d/{half}.interrupted.",
    )
    assert [place.name for place in (desk / "d").iterdir()] == [f"{half}.interrupted"]


def test_measuring_that_is_interrupted_names_its_folder_and_leaves_no_temporary_one(
    desk: Path, capsys: pytest.CaptureFixture[str], interrupt: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(desk / "t"))
    interrupt("lineas.evaluation.text_measures.perplexities", HUP)
    code, _, err = run(capsys, "evaluate", "model", "--neutral", "source.txt", "--out", "e")
    said = "interrupted; what was measured is kept, the same command goes on in e."
    assert (code, err.splitlines()[-1]) == (129, said)
    run(capsys, *LEARN)
    before = sorted(desk.rglob("*"))
    interrupt("lineas.evaluation.text_measures.perplexities", TERM)
    code, _, err = run(
        capsys, "calibrate", "--intervention", "calm", "--neutral", "source.txt", "--max-damage", "ppl+5%"
    )
    assert (code, err.splitlines()[-1]) == (143, "interrupted; nothing was written.")
    assert sorted(desk.rglob("*")) == before


def test_a_sweep_that_is_interrupted_goes_on_by_the_same_command(
    desk: Path, capsys: pytest.CaptureFixture[str], interrupt: Callable[..., None]
) -> None:
    sweep = ("sweep", "model", *SIDES, "--neutral", "source.txt", "--gamma", "0", "--steps", "3", "--out", "s")
    interrupt(STEP, TERM, call=2)
    code, _, err = run(capsys, *sweep)
    said = "interrupted; what was learned and measured is kept, the same command goes on in s."
    assert (code, err.splitlines()[-1]) == (143, said)
    assert not list((desk / "s").rglob("intervention.json"))
    assert run(capsys, *sweep)[0] == 0


def test_what_was_written_before_a_signal_is_named(
    desk: Path, capsys: pytest.CaptureFixture[str], interrupt: Callable[..., None]
) -> None:
    interrupt("lineas.cli.learn.write_json", INT)
    code, _, err = run(capsys, *LEARN)
    assert (code, err.splitlines()[-1]) == (130, "interrupted; written before that and whole: calm.")
    assert lineas.Intervention.load("calm").unfinished is None


@pytest.mark.parametrize(
    "then", [lambda *_, **__: (_ for _ in ()).throw(ImportError("broken")), lambda *_, **__: sys.exit(0)]
)
def test_a_signal_that_a_library_makes_an_error_of_stays_one(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, then: Callable[..., Any]
) -> None:
    def swallows(*given: Any, **options: Any) -> Any:
        try:
            signal.raise_signal(TERM)
        except BaseException:
            return then()

    monkeypatch.setattr("lineas.cli.common.load", swallows)
    code, _, err = run(capsys, *LEARN)
    assert (code, err.splitlines()[-1]) == (143, "interrupted; nothing was written.")
    assert "error" not in err


def test_a_signal_that_python_drops_in_a_destructor_comes_again() -> None:
    class Fragile:
        def __del__(self) -> None:
            signal.raise_signal(TERM)

    def run_into_it() -> None:
        with signals.running(alone=False) as command, command.interruptible():
            Fragile()
            threading.Event().wait()  # for ever, but for the signal that comes again

    with pytest.raises(SystemExit) as end:
        run_into_it()
    assert end.value.code == 143


def test_a_signal_that_the_process_is_to_ignore_is_ignored(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs begun by nohup have such signals."""
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        with signals.running(alone=False) as command, command.interruptible():
            signal.raise_signal(HUP)
        assert signal.getsignal(HUP) == signal.SIG_IGN
    finally:
        signal.signal(HUP, before)


# ---------------------------------------------------------------------------------------------- processes of their own

WHILE_IMPORTING = """
import signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            signal.raise_signal({number})
            raise AssertionError("it went on")

sys.meta_path.insert(0, Finder())
from lineas.cli import main
main()
"""


def listens() -> None:
    """Give the signals what they have in a terminal, whatever runs the tests."""
    for number in (INT, TERM, HUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [INT, TERM, HUP])
def test_while_importing_a_signal_ends_the_process_at_once(desk: Path, number: int) -> None:
    command = [sys.executable, "-c", WHILE_IMPORTING.format(number=int(number)), *LEARN]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=listens, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "interrupted; nothing was written.\n")


WHILE_LEARNING = """
import signal
from lineas.learning import lineas as learning

steps, backpropagate = 0, learning.backpropagate

def interrupted(*given):
    global steps
    steps += 1
    if steps == 4:
        signal.raise_signal(signal.SIGINT)
    return backpropagate(*given)

learning.backpropagate = interrupted
from lineas.cli import main
main()
"""


def test_ctrl_c_keeps_what_was_learned_and_says_where(desk: Path) -> None:
    """A real process, a real signal, and a terminal that is gone when it would be told."""
    command = [sys.executable, "-c", WHILE_LEARNING, *LEARN[:-1], "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listens) as process:
        assert process.stdout is not None
        process.stdout.close()
        err = process.stderr.read().decode()  # pyright: ignore[reportOptionalMemberAccess]
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted after 3 of 100000 steps; what was learned is in calm.interrupted."
    assert json.loads((desk / "calm.interrupted" / "intervention.json").read_text())["facts"]["steps_done"] == 3


def test_the_help_reads_no_torch_and_names_of_lineas_come_when_asked_for() -> None:
    script = """
import sys
import lineas
from lineas.cli import main
assert "steer" in dir(lineas) and "learning" not in vars(lineas)
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
assert "torch" not in sys.modules
assert not hasattr(lineas, "nonsense")
assert lineas.signals.ENDING
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert {name: getattr(lineas, name) for name in lineas.__all__}
    assert lineas.learning.gate
    with pytest.raises(SystemExit):
        main(["--help"])
