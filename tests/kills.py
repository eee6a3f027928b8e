"""Kills the command line at random moments, verb by verb, and checks what is left: `python tests/kills.py --count 200`.

After every kill each output is what it was before, or what the undisturbed command makes of it, or goes on when the
same command is given again; nothing else in the folder has changed, and the next run leaves nothing beside its outputs.
Commands run in copies of this process, which imports all that they need and computes nothing: threads are not copied.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import families
import pipelines
import torch
from console import SOURCE, TARGET
from safetensors.torch import load_file

import lineas
from lineas.cli import main
from lineas.files.ownership import MARK
from lineas.files.writing import TEMPORARY

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LONGEST = 120
"""Seconds after which a run counts as hanging."""
VOLATILE = ("created", "seconds", "versions", "written")
"""Keys of JSON that differ from run to run."""
NOTES = "mine, and of nobody else"
PLOTS = ("effect-damage.png", "sweep.png", "polite.png", "sweep.md")


@dataclass(frozen=True)
class Verb:
    """One command of the table.

    Args:
        old: the command that makes the state before.
        new: the command that is killed.
        outputs: what it writes.
        resumes: whether the same command goes on where it was killed.
    """

    old: str
    new: str
    outputs: tuple[str, ...]
    resumes: bool = False


SIDES = "--source source.txt --target target.txt --dtype float32"
JUDGED = "--prompts prompts.txt --neutral neutral.txt --dtype float32"
PAINTED = (
    "paint painter --intervention striped --prompt star --size 16x16 --denoising-steps 1 --dtype float32 --out out"
)
VERBS: dict[str, Verb] = {
    "learn": Verb(
        f"learn model {SIDES} --steps 2 --out out",
        f"learn model {SIDES} --steps 40 --out out --json out.json --force",
        ("out", "out.json"),
    ),
    "generate": Verb(
        "generate model --intervention calm --prompt Tom --dtype float32 --seed 1 --json out.json",
        "generate model --intervention calm --prompt Tom Ann --dtype float32 --json out.json --force",
        ("out.json",),
    ),
    "show": Verb("show calm --json out.json", "show brief --json out.json --force", ("out.json",)),
    "compose": Verb("compose calm brief --out out", "compose brief calm --out out --force", ("out",)),
    "gate": Verb(
        "gate --intervention calm --control neutral.txt --out out --components 1 --dtype float32",
        "gate --intervention brief --control neutral.txt --out out --components 2 --dtype float32 --force",
        ("out",),
    ),
    "fold": Verb(
        "fold model --intervention calm --out out --strength 0.5",
        "fold model --intervention brief --out out --force --shard-size 20kB",
        ("out",),
    ),
    "paint": Verb(f"{PAINTED} --strength 0", f"{PAINTED} --strength 0.5 1 --force", ("out",)),
    "demo": Verb("demo model --out out", "demo other --out out --force", ("out",)),
    "export": Verb(
        "export blocks --out out.gguf", "export blocks --strength 0.5 --out out.gguf --force", ("out.gguf",)
    ),
    "report": Verb(
        "report --intervention calm --out out.html",
        "report --intervention calm brief --prompts prompts.txt --out out.html --force",
        ("out.html",),
    ),
    "calibrate": Verb(
        f"calibrate --intervention calm --max-damage kl<=0.5 {JUDGED} --classifier none --out out",
        f"calibrate --intervention calm --max-damage kl<=0.4 {JUDGED} --classifier none --out out --force",
        ("out",),
    ),
    "evaluate": Verb(
        "", f"evaluate model --intervention calm {JUDGED} --classifier none --seeds 3 --out out", ("out",), resumes=True
    ),
    "sweep": Verb(
        "",
        f"sweep model {SIDES} --steps 4 --gamma 0 0.001 0.01 --neutral neutral.txt --out out",
        ("out",),
        resumes=True,
    ),
}


def desk(folder: Path) -> None:
    """Fill a folder with a tiny model, prompts and three interventions."""
    families.model("llama").save_pretrained(folder / "model")
    families.model("llama", seed=1).save_pretrained(folder / "other")
    painter = pipelines.image_model("stable diffusion 1")
    painter.save_pretrained(folder / "painter")
    norm = painter.sites()[0]
    map_ = lineas.AffineMap(torch.full((pipelines.WIDTH,), 1.5), torch.zeros(pipelines.WIDTH))
    lineas.Intervention({norm.name: map_}, {norm.name: norm}).save("striped")
    for name, text in (("source.txt", SOURCE), ("target.txt", TARGET), ("neutral.txt", TARGET + SOURCE)):
        Path(name).write_text(text)
    Path("prompts.txt").write_text("Tom was\nThe dog\nOne day a girl\n")
    Path("notes.md").write_text(NOTES)
    for name, seed in (("calm", 0), ("brief", 1)):
        run_quietly(f"learn model {SIDES} --steps 3 --lr {0.1 + seed / 10} --foldable --out {name}")
    width = 32
    maps = {
        f"model.layers.{i}": lineas.AffineMap(torch.ones(width), torch.full((width,), 0.1 * (i + 1))) for i in (0, 1)
    }
    lineas.Intervention(maps).save("blocks")


def run_quietly(command: str) -> int:
    """Run a command in a process of its own and return its exit code."""
    return finish(begin(lambda: commanded(command)))


def rehearse(work: Callable[[], None]) -> None:
    """Do a piece of work in a copy of this process, then import here what it imported, so that later copies have it."""
    with tempfile.NamedTemporaryFile("r") as told:

        def and_tell() -> None:
            try:
                work()
            finally:
                Path(told.name).write_text("\n".join(sys.modules))

        assert finish(begin(and_tell)) == 0, Path("log.txt").read_text()
        for name in told.read().split("\n"):
            with suppress(ImportError):  # a module that another one makes while it is imported
                importlib.import_module(name)


def commanded(command: str) -> None:
    """Do what the command line does with a command."""
    sys.argv = ["lineas", *command.split()]
    main()


def begin(work: Callable[[], None]) -> int:
    """Start a piece of work in a copy of this process; return the process id."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        for stream in (0, 1, 2):
            os.dup2(os.open(os.devnull if stream == 0 else "log.txt", os.O_RDWR | os.O_CREAT | os.O_APPEND), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command answers signals
        work()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(child: int) -> int:
    """Wait for a process and return its exit code, negative after a signal."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("it hangs")


def content(path: Path) -> Any:
    """Return what an output holds, without what differs from run to run; None where it is not there."""
    if not path.exists():
        return None
    if path.is_dir():
        return {
            p.relative_to(path).as_posix(): content(p) for p in sorted(path.rglob("*")) if p.is_file() and counts(p)
        }
    if path.suffix == ".json":
        return steady(json.loads(path.read_text()))
    if path.suffix == ".jsonl":  # a kill may have cut a line off
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        return [steady(json.loads(line)) for line in lines]
    if path.suffix == ".safetensors":
        return {name: tensor.tolist() for name, tensor in load_file(path).items()}
    if path.name == "README.md" or path.suffix == ".html":
        return sorted(line for line in path.read_text().splitlines() if not any(key in line for key in VOLATILE))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def counts(file: Path) -> bool:
    """Return whether a file is part of the result: plots and tables show times, parts and marks are lineas' own."""
    hidden = file.name in ("notes.md", MARK, *PLOTS) or "parts" in file.parts
    return not hidden and not is_leftover(file.as_posix())


def steady(value: Any) -> Any:
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if k not in VOLATILE and "sha256" not in k}
    return [steady(one) for one in value] if isinstance(value, list) else value


def others(folder: Path, verb: Verb) -> dict[str, str]:
    """Everything but the outputs, and whatever the user has put into them."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        mine = name.split("/")[0] in verb.outputs and not name.endswith("notes.md")
        if file.is_file() and not mine and name != "log.txt" and not is_leftover(name):
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def is_leftover(name: str) -> bool:
    """Return whether a killed process may leave a file of this name, until the next run."""
    return any(part.startswith(TEMPORARY) or part.endswith(".interrupted") for part in name.split("/"))


class Kills:
    """One verb's states before and after, and the desk they are made on.

    Args:
        start: a folder filled by `desk`.
        scratch: where copies go.
        name: of the verb.
    """

    def __init__(self, start: Path, scratch: Path, name: str) -> None:
        self.verb, self.scratch, self.name = VERBS[name], scratch, name
        self.before = scratch / f"{name}-before"
        shutil.copytree(start, self.before)
        os.chdir(self.before)
        if self.verb.old:
            rehearse(lambda: commanded(self.verb.old))
            for output in self.verb.outputs:
                if Path(output).is_dir():
                    (Path(output) / "notes.md").write_text(NOTES)
        self.old = self._contents(self.before)
        after = scratch / f"{name}-after"
        shutil.copytree(self.before, after)
        os.chdir(after)
        if not self.verb.old:
            rehearse(lambda: commanded(self.verb.new))
            shutil.rmtree(after)
            shutil.copytree(self.before, after)
            os.chdir(after)
        begun = time.monotonic()
        assert run_quietly(self.verb.new) == 0, Path("log.txt").read_text()
        self.seconds = time.monotonic() - begun
        self.new = self._contents(after)
        assert self.new != self.old, "the two commands make the same"

    def kill(self, chance: random.Random, number: int) -> str:
        """Kill the command once; return what was left: old, new or resumed.

        Raises:
            AssertionError: where it was none of them.
        """
        place = self.scratch / f"{self.name}-{number}"
        shutil.copytree(self.before, place)
        os.chdir(place)
        Path("log.txt").unlink(missing_ok=True)
        untouched = others(place, self.verb)
        with_signal, after = chance.choice(SIGNALS), chance.uniform(0, 1.05 * self.seconds)
        child = begin(lambda: commanded(self.verb.new))
        time.sleep(after)
        with suppress(ProcessLookupError):
            os.kill(child, with_signal)
        code = finish(child)
        log = (place / "log.txt").read_text() if (place / "log.txt").exists() else ""
        about = f"{self.name}, {with_signal.name} after {after:.3f} s, exit code {code}\n{log}"
        assert "Traceback" not in log, about
        assert code in (0, -with_signal, 128 + with_signal), about
        if with_signal != signal.SIGKILL and code != -with_signal:
            assert code == 0 or "interrupted" in log, about
        assert others(place, self.verb) == untouched, f"something else has changed: {about}"
        left = self._contents(place)
        state = self._state(left, about)
        again = run_quietly(self.verb.new)
        assert again == 0, f"the next run failed: {about}\n{(place / 'log.txt').read_text()}"
        assert self._contents(place) == self.new, f"the next run makes something else: {about}"
        temporary = [p.name for p in place.rglob(f"{TEMPORARY}*")]
        assert not temporary, f"{temporary} stayed: {about}"
        shutil.rmtree(place)
        return state

    def _state(self, left: list[Any], about: str) -> str:
        states = {
            "old" if one == old else "new" if one == new else "?" for one, old, new in zip(left, self.old, self.new)
        }
        if "?" in states or len(states) == 0:
            assert self.verb.resumes, f"neither old nor new: {about}"
            return "resumed"
        return "new" if states == {"new"} else "old" if states == {"old"} else "some of both, each whole"

    def _contents(self, folder: Path) -> list[Any]:
        return [content(folder / output) for output in self.verb.outputs]


def killed(count: int, seed: int, scratch: Path, show: Callable[[str], None] = lambda line: None) -> dict[str, int]:
    """Kill so many times, the verbs in turn; return how often each state was left."""
    chance = random.Random(seed)
    start = scratch / "start"
    start.mkdir()
    os.chdir(start)
    rehearse(lambda: desk(start))
    tables = {name: Kills(start, scratch, name) for name in list(VERBS)[: max(1, min(count // 2, len(VERBS)))]}
    states: dict[str, int] = {}
    for number in range(count):
        name = list(tables)[number % len(tables)]
        state = tables[name].kill(chance, number)
        states[state] = states.get(state, 0) + 1
        show(f"{number + 1} of {count}: {name} {state}")
    return states


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(killed(given.count, given.seed, Path(folder), lambda line: print(line, flush=True))))
        os.chdir("/")
