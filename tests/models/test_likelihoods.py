"""Log-likelihoods of continuations: those of a plain pass over every text, however much texts share."""

from __future__ import annotations

import random

import families
import pytest
import torch

import lineas
from lineas.models.likelihoods import likelihoods

LONGEST = 256


def plainly(model: lineas.TextModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """A whole pass over one text."""
    ids = torch.tensor([[*context, *continuation][-LONGEST - 1 :]])
    with torch.no_grad():
        steps = model.network(ids[:, :-1], use_cache=False).logits[0].log_softmax(-1)[-len(continuation) :]
    wanted = torch.tensor(continuation)
    return float(steps.gather(-1, wanted.unsqueeze(-1)).sum()), bool((steps.argmax(-1) == wanted).all())


def some_ids(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(3, 120) for _ in range(count)]


def asked(kind: str) -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations: examples in front of many questions, of few, of none, and texts that are too long."""
    chance = random.Random(1)
    examples = some_ids(chance, 90)
    questions = [some_ids(chance, chance.randrange(1, 30)) for _ in range(20)]
    letters, answers = [[7], [8], [9]], [some_ids(chance, n) for n in (1, 2, 9)]
    return {
        "examples": [(examples + q, letter) for q in questions for letter in letters],
        "answers of several tokens": [(examples + q, answer) for q in questions for answer in answers],
        "nothing but the examples": [(list(examples), some_ids(chance, 3)) for _ in questions],
        "no examples": [(q, letter) for q in questions for letter in letters],
        "too long": [(examples * 3 + q, answer) for q in questions for answer in answers],
        "several": [((examples, questions[3] * 40, [1])[k % 3][:60] + q, answers[1]) for k, q in enumerate(questions)],
    }[kind]


KINDS = ["examples", "answers of several tokens", "nothing but the examples", "no examples", "too long", "several"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steered", [False, True])
def test_they_are_those_of_a_plain_pass_over_every_text(stories: lineas.TextModel, kind: str, steered: bool) -> None:
    chance = torch.Generator().manual_seed(0)
    maps = {}
    for site in stories.sites():
        width = families.width(stories)
        maps[site.name] = lineas.AffineMap(torch.ones(width), torch.randn(width, generator=chance))
    wanted = asked(kind)
    plain = likelihoods(stories, wanted, LONGEST)
    with lineas.steer(stories, lineas.Intervention(maps), strength=float(steered)):
        found = likelihoods(stories, wanted, LONGEST, rows=7)
        expected = [plainly(stories, *one) for one in wanted]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=5e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    apart = max(abs(one - other) for (one, _), (other, _) in zip(found, plain))
    assert apart > 1 if steered else apart <= 5e-4  # a steering that acts on nothing would pass all of the above


@pytest.mark.parametrize("family", [*families.FAMILIES, *families.RECURRENT])
def test_families_keep_what_texts_share(family: str) -> None:
    model = families.model(family)
    wanted = asked("examples")
    found = likelihoods(model, wanted, LONGEST)
    expected = [plainly(model, *one) for one in wanted]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=5e-4)


def test_what_texts_share_runs_once(stories: lineas.TextModel) -> None:
    ran = []
    hook = stories.network.get_input_embeddings().register_forward_hook(  # pyright: ignore[reportCallIssue]
        lambda module, inputs, output: ran.append(inputs[0].numel())
    )
    wanted, done = asked("examples"), []
    likelihoods(stories, wanted, LONGEST, progress=done.append)
    hook.remove()
    questions = {tuple(context) for context, _ in wanted}
    assert sum(ran) <= 90 + 1.3 * sum(len(question) - 90 for question in questions)  # letters are read off one run
    assert sum(done) == len(wanted)
