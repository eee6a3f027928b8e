"""LoFIT-RL: maps of the same form trained by policy gradient on a classifier's reward, as an oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from lineas.checks import COUNT, PAIR, RATE, STEPS, TOKENS, WEIGHT, as_seed, check_settings, within
from lineas.errors import LineasError
from lineas.learning.interruption import stoppable
from lineas.learning.method import Fit, Task
from lineas.learning.optimizers import DeviationAdam
from lineas.learning.trained_maps import TrainedMaps, units
from lineas.models.scoring import predictions, scored_parts
from lineas.models.text import TextModel
from lineas.models.text_batches import PaddedPart
from lineas.sites import Site
from lineas.steering.exclusive import exclusively
from lineas.steering.hooks import Edit, edited

Classifier = Callable[[Sequence[str]], list[float]]


@dataclass(frozen=True)
class LoFITRL:
    """An estimate of the best that maps of this form can do: they are trained on the classifier that judges them.

    Maximises `E_y[1 - p(y)] - kl KL(steered || untouched)` over continuations y sampled from the steered model. Here p
    is the classifier's probability of the unwanted behaviour, and KL the divergence between whole continuations,
    `E_y sum_t KL_t`, with KL_t exact at every sampled token. The gradient is REINFORCE's, of the reward and of the
    divergence still to come, over the mean of a prompt's other samples (Ahmadian et al. 2024, arXiv 2402.14740,
    equation 8), and that of each KL_t itself. Maps as in LoFiT (Yin et al. 2024, arXiv 2406.01563), here on whole
    modules; the oracle of arXiv 2503.10679. The source's prompts are continued, and the target is not used.

    Args:
        classifier: function from texts to probabilities of the unwanted behaviour.
        steps: number of optimizer steps.
        learning_rate: largest learning rate, in deviations of a neuron (see `LinEAS`, "relative").
        kl: weight of the divergence, in nats a continuation, against a reward of 0 to 1.
        prompts: number of prompts continued in a step, drawn anew each time; None takes all.
        samples: number of continuations of each prompt, at least 2.
        max_new_tokens: largest number of tokens of a continuation.

    Raises:
        LineasError: when the classifier is no function, or a setting is out of its bounds.
    """

    default_sites: ClassVar[str | None] = None  # the norms before the MLPs

    classifier: Classifier
    steps: int = field(default=40, metadata=within(STEPS))
    learning_rate: float = field(default=0.03, metadata=within(RATE))
    kl: float = field(default=0.1, metadata=within(WEIGHT))
    prompts: int | None = field(default=16, metadata=within(COUNT))
    samples: int = field(default=4, metadata=within(PAIR))
    max_new_tokens: int = field(default=32, metadata=within(TOKENS))

    def __post_init__(self) -> None:
        if not callable(self.classifier):
            raise LineasError("LoFITRL needs a classifier: a function from texts to probabilities.")
        check_settings(self)

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map per site; the costs are the mean probabilities of the unwanted behaviour, before each update.

        Raises:
            LineasError: when the model is no text model.
        """
        model = task.model
        if not isinstance(model, TextModel):
            raise LineasError("LoFITRL continues prompts, so it needs a text model.")
        source = task.source_activations()
        trained = TrainedMaps(task.sites, source)
        optimizer = DeviationAdam(trained.parameters, units(source, source), self.learning_rate, self.steps)
        generator = torch.Generator().manual_seed(task.seed)
        encoded = task.source.ids
        costs: list[float] = []
        learned = trained.maps()  # after the last whole step, so that an interruption leaves no half step
        with stoppable(lambda: len(costs), self.steps) as ending:
            for step in range(self.steps):
                drawn = torch.randperm(len(encoded), generator=generator)[: self.prompts].tolist()
                prompts = [encoded[i] for i in drawn for _ in range(self.samples)]
                with edited(model.network, trained.edits):
                    seed = as_seed(task.seed * self.steps + step)
                    continued = model.continue_ids(prompts, self.max_new_tokens, 1.0, 1.0, 1.0, seed, len(prompts))
                continued = [_until_end(new, model) for new in continued]
                texts = model.tokenizer.batch_decode(continued, skip_special_tokens=True)
                unwanted = torch.tensor(self.classifier(texts), dtype=torch.float32)
                self._backward(model, trained.edits, prompts, continued, unwanted)
                optimizer.step()
                learned = trained.maps()
                costs.append(float(unwanted.mean()))
                if task.progress:
                    task.progress(step + 1, self.steps, costs[-1])
        name = getattr(self.classifier, "__name__", type(self.classifier).__name__)
        return Fit(learned, costs, {"classifier": name}, self.steps if ending.interrupted else None)

    def _backward(
        self,
        model: TextModel,
        edits: dict[Site, Edit],
        prompts: list[list[int]],
        continued: list[list[int]],
        unwanted: torch.Tensor,
    ) -> None:
        """Add the gradient of the negative objective, part by part."""
        parts = scored_parts(model, [[*prompt, *new] for prompt, new in zip(prompts, continued)])
        starts = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        divergences = torch.zeros(len(prompts), self.max_new_tokens)  # of the k-th sampled token
        if self.kl > 0:
            for part in parts:
                with torch.no_grad():
                    per_token, _ = _divergence(model, edits, part)
                columns = torch.arange(self.max_new_tokens, device=model.device) + starts[part.rows].unsqueeze(1) - 1
                inside = columns < per_token.shape[1]
                sampled = (per_token * _sampled(part, starts)).gather(1, columns.clamp_max(per_token.shape[1] - 1))
                divergences[part.rows.cpu()] = (sampled * inside).cpu()
        advantages = self._advantages(unwanted, divergences).to(model.device)  # [n, max_new_tokens]
        for part in parts:
            with torch.enable_grad():
                per_token, steered = _divergence(model, edits, part)
                chosen = steered.gather(-1, part.ids[:, 1:].unsqueeze(-1)).squeeze(-1)  # [b, t - 1]
                index = torch.arange(chosen.shape[1], device=model.device) - starts[part.rows].unsqueeze(1) + 1
                weights = advantages[part.rows].gather(1, index.clamp(0, self.max_new_tokens - 1))
                gain = (weights * chosen - self.kl * per_token) * _sampled(part, starts)
                (-gain.sum() / len(prompts)).backward()

    def _advantages(self, unwanted: torch.Tensor, divergences: torch.Tensor) -> torch.Tensor:
        """Return each token's return minus the mean of its prompt's other samples at the same place, `[n, T]`."""
        to_come = divergences.flip(1).cumsum(1).flip(1) - divergences
        returns = (1 - unwanted.unsqueeze(1) - self.kl * to_come).view(-1, self.samples, self.max_new_tokens)
        others = (returns.sum(1, keepdim=True) - returns) / (self.samples - 1)
        return (returns - others).flatten(0, 1)


def _divergence(model: TextModel, edits: dict[Site, Edit], part: PaddedPart) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL(steered || untouched) of every predicted token, `[b, t - 1]`, and the steered log-probabilities."""
    with torch.no_grad():
        untouched = predictions(model, part).log_softmax(-1)
    with edited(model.network, edits):
        steered = predictions(model, part).log_softmax(-1)
    return (steered.exp() * (steered - untouched)).sum(-1), steered


def _sampled(part: PaddedPart, starts: torch.Tensor) -> torch.Tensor:
    """Return which predicted tokens were sampled, bool `[b, t - 1]`: those after the prompt, without padding."""
    columns = torch.arange(1, part.ids.shape[1], device=part.ids.device)
    return (columns >= starts[part.rows].unsqueeze(1)) & (part.mask[:, 1:] == 1)


def _until_end(new: list[int], model: TextModel) -> list[int]:
    """Return new token ids up to the first end of text, which is included."""
    return next((new[: at + 1] for at, token in enumerate(new) if token in model.end_ids), new)
