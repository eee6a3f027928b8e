"""LoRA on the target's sentences: fine-tuning with peft, for comparison (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lineas.checks import COUNT, RATE, SEED, STEPS, TOGETHER, TOKENS, as_texts, check_settings, within
from lineas.errors import LineasError, needing
from lineas.files.ownership import FolderKind
from lineas.files.writing import new_folder
from lineas.learning.interruption import place_of_unfinished, stoppable
from lineas.models.adapters import PEFT, temporary_adapters
from lineas.models.scoring import predictions, scored_parts
from lineas.models.text import TextModel
from lineas.modules import non_text_modules

ROUTERS = r".*\.router"
"""Linears that choose experts; some return two tensors, and peft expects one."""
ADAPTER = FolderKind("an adapter", "adapter", "adapter_config.json")


@dataclass(frozen=True)
class LoRA:
    """Low-rank changes of every linear, trained to predict the target's sentences.

    Minimises the mean negative log-likelihood of the sentences' tokens by AdamW with a linear decay.

    Args:
        rank: rank of the change of each weight.
        alpha: alpha / rank scales the change.
        epochs: number of passes over the sentences.
        learning_rate: learning rate of the first step.
        batch_size: number of sentences in a step.

    Raises:
        LineasError: when a setting is out of its bounds.
    """

    rank: int = field(default=8, metadata=within(COUNT))
    alpha: int = field(default=16, metadata=within(COUNT))
    epochs: int = field(default=3, metadata=within(STEPS))
    learning_rate: float = field(default=5e-4, metadata=within(RATE))
    batch_size: int = field(default=8, metadata=within(TOGETHER))

    def __post_init__(self) -> None:
        check_settings(self)

    def fine_tune(
        self,
        model: TextModel,
        sentences: Sequence[str],
        folder: str | Path,
        seed: int = 0,
        max_length: int = 128,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> list[float]:
        """Train an adapter and save it; the model itself is left as it was.

        Args:
            model: model to fine-tune.
            sentences: texts of the behaviour to reach.
            folder: new folder of the adapter, which `lineas.evaluation.variants.Adapted` and peft read.
            seed: seed of the adapter's initial weights and of the order of the sentences.
            max_length: largest number of tokens of a sentence; the rest is cut.
            progress: function that is called after every step with (steps done, steps in all, loss); None for none.

        Returns:
            The loss of every step, in nats per token.

        Raises:
            LineasError: when peft is not installed or does not know the network, the folder exists, or the loss is not
                finite.
            KeyboardInterrupt: when it is interrupted; if a step was done, the adapter is then in FOLDER.interrupted.
        """
        with needing(*PEFT):
            from peft import LoraConfig, get_peft_model
        sentences = as_texts("the sentences", sentences)
        seed, max_length = SEED.check("seed", seed), TOKENS.check("max_length", max_length)
        folder = Path(folder)
        if folder.exists():
            raise LineasError(f"{folder} exists already; choose another folder.")
        encoded, _ = model.encode(sentences, max_length)
        encoded = [ids for ids in encoded if len(ids) > 1]
        if not encoded:
            raise LineasError("fine-tuning needs sentences of at least two tokens.")
        generator = torch.Generator().manual_seed(seed)
        steps = self.epochs * math.ceil(len(encoded) / self.batch_size)
        losses: list[float] = []
        with temporary_adapters(model.network), torch.random.fork_rng():
            torch.manual_seed(seed)
            excluded = [ROUTERS, *(rf"{re.escape(name)}(\..*)?" for name in non_text_modules(model.network))]
            config = LoraConfig(
                r=self.rank,
                lora_alpha=self.alpha,
                target_modules="all-linear",
                exclude_modules="|".join(excluded),
                task_type="CAUSAL_LM",
            )
            try:
                adapted: Any = get_peft_model(model.network, config)
            except ValueError as error:  # a family whose own kernels read the linears
                raise LineasError(f"peft cannot put LoRA on {model.name}: {error}") from error
            adapted.eval()  # no dropout: sentences are few
            trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=0.0)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
            with stoppable(lambda: len(losses), steps) as ending:
                for _ in range(self.epochs):
                    for rows in torch.randperm(len(encoded), generator=generator).split(self.batch_size):
                        loss = _backward(model, [encoded[int(i)] for i in rows])
                        if not math.isfinite(loss):
                            raise LineasError(
                                f"the loss is no longer finite at step {len(losses) + 1} of {steps}; nothing was "
                                f"written, try a learning rate of {self.learning_rate / 10:.2g}."
                            )
                        optimizer.step()
                        schedule.step()
                        optimizer.zero_grad()
                        losses.append(loss)
                        if progress:
                            progress(len(losses), steps, loss)
            place = place_of_unfinished(folder) if ending.interrupted else folder
            with new_folder(place, ADAPTER) as temporary:
                adapted.save_pretrained(str(temporary))
        if ending.interrupted:
            raise KeyboardInterrupt(f"after {len(losses)} of {steps} steps; the adapter so far is in {place}")
        return losses


def _backward(model: TextModel, encoded: list[list[int]]) -> float:
    """Add the gradient of the mean loss per token, and return that mean."""
    tokens = sum(len(ids) - 1 for ids in encoded)
    total = 0.0
    for part in scored_parts(model, encoded):
        logits = predictions(model, part).transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(logits, part.ids[:, 1:], reduction="none")
        loss = (losses * part.mask[:, 1:]).sum() / tokens
        loss.backward()
        total += float(loss.detach())
    return total
