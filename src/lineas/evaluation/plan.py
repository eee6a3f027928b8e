"""Plan: the measurements of texts or of pictures, which are the same for every system."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lineas.checks import SEED, as_number, as_texts
from lineas.errors import LineasError
from lineas.evaluation.classifiers import Classifier, classifier
from lineas.evaluation.judges import PictureJudge
from lineas.prompts import described

BATCH = 64
"""Number of prompts that every verb of the command line continues together, since samples depend on it."""
PICTURES = 8
"""Number of pictures drawn together by default."""
SAMPLING = ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "batch_size", "chat")
"""Arguments of `TextModel.generate` that a plan may set."""


@dataclass(frozen=True)
class Plan:
    """The measurements to make, the same for every system.

    A plan whose classifiers and judge are names can be sent to another process.

    Args:
        prompts: prompts to continue or to draw.
        neutral: sentences whose perplexity and predictions should not change.
        classifiers: classifiers of the continuations by column: a name that `classifier` knows, or a function from
            texts to probabilities.
        seeds: seeds of the sampling; default: 0. For pictures, seed s gives prompt i of n the noise s n + i.
        sampling: arguments of `TextModel.generate`, whose defaults are the paper's (32 tokens, temperature 1, top-p
            0.3, repetition penalty 1.2; arXiv 2503.10679, section 4). For pictures only `batch_size`; default: 8.
        tasks: names of tasks of lm-eval; see `lineas.evaluation.lm_harness`.
        task_path: folder with further task files.
        task_limit: largest number of examples of each task; None for all.
        fewshot: number of examples in the context of a task; None for the task's own.
        max_length: largest number of tokens of a neutral sentence; default: 50.
        concept: concept to look for in pictures, in words that the judge knows; None for texts.
        judge: judge of pictures, or a name that `judge` knows; None for the model's own, or CLIP.

    Raises:
        LineasError: when a value is of another type, or makes no sense.
    """

    prompts: Sequence[str] = ()
    neutral: Sequence[str] = ()
    classifiers: Mapping[str, str | Classifier] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    task_path: str | Path | None = None
    task_limit: int | None = None
    fewshot: int | None = None
    max_length: int = 50
    concept: str | None = None
    judge: str | PictureJudge | None = None

    def __post_init__(self) -> None:
        for name, kind in (("prompts", "prompts"), ("neutral", "sentences"), ("tasks", "tasks")):
            object.__setattr__(self, name, tuple(as_texts(name, getattr(self, name), kind)))
        object.__setattr__(self, "seeds", seeds_of(self.seeds))
        by_column = self.classifiers
        if not isinstance(by_column, Mapping) or not all(isinstance(c, str) or callable(c) for c in by_column.values()):
            raise LineasError('classifiers are given by name, such as {"toxic": "profanity-check"}.')
        if self.classifiers and not self.prompts:
            raise LineasError("a classifier judges continuations; give prompts to continue.")
        self._check_sampling()
        if self.task_path is not None and not Path(self.task_path).is_dir():
            raise LineasError(f"there is no folder {self.task_path}; task_path names one with task files of lm-eval.")
        for name, least in (("task_limit", 1), ("fewshot", 0), ("max_length", 2)):
            number = getattr(self, name)
            optional = number is None and name != "max_length"
            if not optional and (isinstance(number, bool) or not isinstance(number, int) or number < least):
                raise LineasError(f"{name} is a whole number of at least {least}, not {number!r}.")
        if self.concept is not None:
            self._check_pictures()

    def _check_sampling(self) -> None:
        if not isinstance(self.sampling, Mapping):
            raise LineasError(f'sampling is given by name, such as {{"temperature": 0}}, not {self.sampling!r}.')
        for name, value in self.sampling.items():
            if name not in SAMPLING:
                raise LineasError(f"sampling knows {', '.join(SAMPLING)}, not {name!r}.")
            if name != "chat" or not isinstance(value, bool):
                as_number(value, f"{name} of the sampling")

    def _check_pictures(self) -> None:
        if not self.prompts:
            raise LineasError("measuring needs at least one prompt to draw and one seed.")
        if not isinstance(self.concept, str) or not self.concept.strip():
            raise LineasError(f"the concept to look for is a text, not {self.concept!r}.")
        lacks = [name for name in ("name", "scores", "features") if not hasattr(self.judge, name)]
        if not (self.judge is None or isinstance(self.judge, str)) and (isinstance(self.judge, type) or lacks):
            raise LineasError(f"the judge of pictures is a name, or the result of judge(NAME), not {self.judge!r}.")
        foreign = [name for name in ("neutral", "classifiers", "tasks") if getattr(self, name)]
        foreign += [name for name in self.sampling if name != "batch_size"]
        if foreign:
            raise LineasError(f"{foreign[0]} is about texts; leave it out, or leave out the concept of pictures.")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise LineasError(f"batch_size is a whole number of at least 1, not {self.batch_size!r}.")
        for seed in self.seeds:
            if not all(SEED.least <= self.first_seed(one) <= SEED.most for one in (seed, seed + 1)):
                raise LineasError(
                    f"with {len(self.prompts)} prompts, seed {seed} needs noise seeds beyond those of torch; take a "
                    "smaller one."
                )

    @property
    def batch_size(self) -> int:
        """The number of pictures to draw together."""
        return self.sampling.get("batch_size", PICTURES)

    def first_seed(self, seed: int) -> int:
        """Return the noise seed of the first picture; each further picture has the next seed."""
        return seed * len(self.prompts)

    @property
    def measures(self) -> list[str]:
        """The names of the measures; `clip_score` comes from CLIP judges only."""
        if self.concept is not None:
            return ["concept", "img_score", "clip_score"]
        effects = [name for column in self.classifiers for name in (column, f"{column}_score")]
        variety = ["distinct_1", "distinct_2", "distinct_3", "repetition", "empty"]
        damage = ["perplexity", "kl"] if self.neutral else []
        return [*(effects + variety if self.prompts else ()), *damage, *self.tasks]

    def loaded_classifiers(self) -> dict[str, Classifier]:
        """Return the classifiers by column, loading those that are names.

        Raises:
            LineasError: when there is no such classifier.
        """
        return {column: classifier(one) for column, one in self.classifiers.items()}

    def described(self) -> dict[str, Any]:
        """Return the data and sampling of the plan as JSON, with digests in place of texts."""
        return {
            "prompts": described(self.prompts),
            "neutral": described(self.neutral),
            "seeds": list(self.seeds),
            "sampling": dict(self.sampling),
            "max_length": self.max_length,
        }

    @property
    def names(self) -> dict[str, Any]:
        """The classifiers, the concept and the judge by name, as JSON."""
        judge = self.judge if self.judge is None or isinstance(self.judge, str) else self.judge.name
        classifiers = {
            column: one if isinstance(one, str) else getattr(one, "__name__", type(one).__name__)
            for column, one in self.classifiers.items()
        }
        return {"classifiers": classifiers, "concept": self.concept, "judge": judge}


def seeds_of(values: Any) -> tuple[int, ...]:
    """Return seeds that torch takes, at least one, as a tuple of int."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise LineasError(f"seeds is a list of whole numbers such as (0, 1), not {values!r}.")
    seeds = tuple(values)
    if not seeds:
        raise LineasError("measuring needs at least one seed.")
    for seed in seeds:
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or not SEED.least <= int(seed) <= SEED.most:
            raise LineasError(f"a seed is a whole number from -2**63 to 2**64 - 1, not {seed!r}.")
    return tuple(map(int, seeds))
