"""LoFIT-RL: maps of the same form trained by policy gradient on a classifier's reward, as an oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from lineas.edits import Edit, edited
from lineas.errors import LineasError
from lineas.learning.fitting import Fit, Task
from lineas.learning.optimizers import Relative
from lineas.learning.trained import TrainedMaps, units
from lineas.models.scoring import Chunk, chunks
from lineas.models.text import TextModel
from lineas.sites import Site

Classifier = Callable[[Sequence[str]], list[float]]


@dataclass(frozen=True)
class LoFITRL:
    """What maps of this form can reach at most: trained on the very classifier that judges them.

    Maximises `E_y[1 - p(y)] - kl KL(steered || untouched)` over continuations y sampled from the steered model, p being
    the classifier's probability of what should go away. The gradient is REINFORCE's with the mean of a prompt's other
    samples as baseline (Ahmadian et al. 2024, arXiv 2402.14740, equation 8); the divergence is exact at every sampled
    token. Maps as in LoFiT (Yin et al. 2024, arXiv 2406.01563), here on whole modules; the oracle of arXiv 2503.10679.
    The source's prompts are continued; the target plays no part.

    Args:
        classifier: from texts to probabilities of what should go away.
        steps: optimizer steps.
        learning_rate: the largest, in deviations of a neuron (see `LinEAS`, "relative").
        kl: weight of the divergence in nats a token.
        prompts: continued a step, drawn anew each time; None takes all.
        samples: continuations a prompt, at least 2.
        max_new_tokens: of a continuation.
    """

    default_sites: ClassVar[str | None] = None  # the norms before the MLPs

    classifier: Classifier
    steps: int = 40
    learning_rate: float = 0.03
    kl: float = 0.1
    prompts: int | None = 16
    samples: int = 4
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        if not callable(self.classifier):
            raise LineasError("LoFITRL needs a classifier: a function from texts to probabilities.")
        for name, least in (("steps", 1), ("samples", 2), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise LineasError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.kl < math.inf:
            raise LineasError(f"the learning rate and kl must be positive, not {self.learning_rate} and {self.kl}.")

    def fit(self, task: Task) -> Fit:
        """Learn one map a site; `costs` are the mean probabilities of what should go away, before each update.

        Raises:
            LineasError: when the model is no text model.
        """
        model = task.model
        if not isinstance(model, TextModel):
            raise LineasError("LoFITRL continues prompts, so it needs a text model.")
        left = task.left()
        trained = TrainedMaps(task.sites, left)
        optimizer = Relative(trained.parameters, units(left, task.reached()), self.learning_rate, self.steps)
        generator = torch.Generator().manual_seed(task.seed)
        encoded, _ = model.encode(task.source, task.max_length)
        costs: list[float] = []
        for step in range(self.steps):
            drawn = torch.randperm(len(encoded), generator=generator)[: self.prompts].tolist()
            prompts = [encoded[i] for i in drawn for _ in range(self.samples)]
            with edited(model.network, trained.edits):
                made = model.continue_ids(
                    prompts, self.max_new_tokens, 1.0, 1.0, 1.0, task.seed * self.steps + step, len(prompts)
                )
            made = [_until_end(new, model) for new in made]
            texts = model.tokenizer.batch_decode(made, skip_special_tokens=True)
            unwanted = torch.tensor(self.classifier(texts))
            self._backward(model, trained.edits, prompts, made, self._advantages(unwanted))
            optimizer.step()
            costs.append(float(unwanted.mean()))
            if task.progress:
                task.progress(step + 1, self.steps, costs[-1])
        name = getattr(self.classifier, "__name__", type(self.classifier).__name__)
        return Fit(trained.maps(), costs, {"classifier": name})

    def _advantages(self, unwanted: torch.Tensor) -> torch.Tensor:
        """Each sample's reward over the mean of its prompt's other samples, `[prompts * samples]`."""
        rewards = 1 - unwanted.view(-1, self.samples)
        others = (rewards.sum(1, keepdim=True) - rewards) / (self.samples - 1)
        return (rewards - others).flatten()

    def _backward(
        self,
        model: TextModel,
        edits: dict[Site, Edit],
        prompts: list[list[int]],
        made: list[list[int]],
        advantages: torch.Tensor,
    ) -> None:
        """Add the gradient of the negative objective, chunk by chunk."""
        whole = [[*prompt, *new] for prompt, new in zip(prompts, made)]
        starts = torch.tensor([len(prompt) for prompt in prompts])
        for chunk in chunks(model, whole):
            rows = chunk.rows.cpu()
            sampled = _sampled(chunk, starts[rows].to(chunk.ids.device))  # [b, t - 1]
            with torch.no_grad():
                untouched = chunk.logits(model).log_softmax(-1)
            with torch.enable_grad(), edited(model.network, edits):
                steered = chunk.logits(model).log_softmax(-1)
                chosen = steered.gather(-1, chunk.ids[:, 1:].unsqueeze(-1)).squeeze(-1)
                divergence = (steered.exp() * (steered - untouched)).sum(-1)
                gain = advantages[rows].to(chosen).unsqueeze(1) * chosen - self.kl * divergence
                loss = -(gain * sampled).sum() / len(whole) / self.max_new_tokens
            loss.backward()


def _sampled(chunk: Chunk, starts: torch.Tensor) -> torch.Tensor:
    """Which predicted tokens were sampled, `[b, t - 1]`: after the prompt and no padding."""
    columns = torch.arange(1, chunk.ids.shape[1], device=chunk.ids.device)
    return (columns >= starts.unsqueeze(1)) & (chunk.mask[:, 1:] == 1)


def _until_end(new: list[int], model: TextModel) -> list[int]:
    """New ids up to the first end of text, which counts."""
    return next((new[: at + 1] for at, token in enumerate(new) if token in model.end_ids), new)
