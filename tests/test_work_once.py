"""Dear work is done once: prompts are encoded, weights read and adapters attached no more often than needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import families
import pytest

import lineas
from lineas.evaluation import Adapted, Plan, Steered, Untouched, perplexity
from lineas.learning.lora import LoRA
from lineas.models import adapters, digests
from lineas.sweeping import Job, run_job

SOURCE, TARGET = families.PROMPTS, families.OTHER_PROMPTS
NEUTRAL = [f"{prompt} on day {i}" for prompt in (*SOURCE, *TARGET) for i in range(3)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], list[int]]:
    """Count the calls of a function that a module or an object holds."""

    def count(owner: Any, name: str) -> list[int]:
        calls, plain = [0], getattr(owner, name)

        def once_more(*given: Any, **options: Any) -> Any:
            calls[0] += 1
            return plain(*given, **options)

        monkeypatch.setattr(owner, name, once_more)
        return calls

    return count


def test_learning_encodes_every_prompt_once(counted: Callable[[Any, str], list[int]]) -> None:
    model = families.model("llama")
    model.samples(["Tom ran"])  # whether it packs is tried once
    calls = counted(lineas.TextModel, "encode")
    lineas.learn(model, SOURCE, TARGET, lineas.LinEAS(steps=3, batch_size=2), progress=False)
    longest_alone = 2  # of the source and of the neutral text, on which memory is measured
    assert calls[0] == 3 + longest_alone


def test_an_evaluation_reads_weights_once_and_attaches_every_variant_once(
    counted: Callable[[Any, str], list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.model("llama")
    learned = lineas.learn(model, SOURCE, TARGET, lineas.LinEAS(steps=2), progress=False)
    LoRA(rank=2, epochs=1).fine_tune(model, TARGET, tmp_path / "adapter")
    monkeypatch.setattr(perplexity, "scored_parts", partial(perplexity.scored_parts, logits=1))  # a sentence a part
    read, stripped = counted(digests, "_weights_digest"), counted(adapters, "_remove_adapters")
    steered = counted(lineas.Intervention, "check_fits")
    variants = [Untouched(), Steered("calm", learned), Adapted("lora", tmp_path / "adapter")]
    found = lineas.evaluate(model, variants, Plan(SOURCE, NEUTRAL), cache=tmp_path / "parts")
    assert not any(row.errors for row in found.rows)
    tried_first = 1
    assert (read[0], stripped[0], steered[0]) == (1, 1 + tried_first, 1 + tried_first)


@pytest.mark.filterwarnings("ignore:strength .* is outside 0 to 1")
def test_a_calibration_and_a_sweep_read_weights_once(counted: Callable[[Any, str], list[int]], tmp_path: Path) -> None:
    model = families.model("llama")
    learned = lineas.learn(model, SOURCE, TARGET, lineas.LinEAS(steps=2), progress=False)
    read = counted(digests, "_weights_digest")
    plan = Plan(neutral=NEUTRAL)
    found = lineas.calibrate(model, learned, plan, damage="ppl+1%", largest=2.0, cache=tmp_path / "parts")
    assert len(found.curve) > 3
    assert read[0] == 1
    job = Job(
        tmp_path, None, plan, method=lineas.LinEAS(steps=2), name="lineas", source=SOURCE, target=TARGET,
        gammas=(0.0, 1e-3),
    )  # fmt: skip
    assert run_job(job, model) == 2
    assert read[0] == 2
