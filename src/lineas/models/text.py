"""TextModel: a causal language model with its tokenizer; batches of prompts, runs for capture, generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.sites import Site, find_sites

PADDING_SHARE = 0.2
"""A part of a batch ends when a further prompt would make its padding exceed this share of its tokens."""


@dataclass(frozen=True)
class TextPart:
    """Prompts of similar length that run together, padded on the right.

    Args:
        ids: token ids, int64 `[b, t]`.
        mask: 1 for real tokens, 0 for padding, `[b, t]`.
        rows: which prompts of the whole batch these are, `[b]`.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor

    def pool(self, activation: torch.Tensor, site: Site) -> torch.Tensor:
        """The mean over each prompt's real tokens, float32 `[b, d]`, of `[b, t, d]` (or, flattened, `[b * t, d]`)."""
        if activation.dim() == 2 and activation.shape[0] == self.mask.numel():
            activation = activation.view(*self.mask.shape, -1)
        if activation.shape[:2] != self.mask.shape or activation.dim() != 3:
            raise LineasError(
                f"site {site.name} gives an activation of shape {list(activation.shape)}; expected "
                f"[{self.mask.shape[0]} prompts, {self.mask.shape[1]} tokens, neurons]. Choose another module."
            )
        weights = (self.mask / self.mask.sum(1, keepdim=True)).to(torch.float32)  # [b, t]
        return torch.einsum("bt,btd->bd", weights, activation.to(torch.float32))


@dataclass(frozen=True)
class TextBatch:
    """Prompts ready to run.

    Args:
        parts: the prompts, sorted by length and cut into parts with little padding.
        size: the number of prompts, n.
        truncated: how many were cut at the length limit.
    """

    parts: list[TextPart]
    size: int
    truncated: int


class TextModel:
    """A causal language model of transformers and its tokenizer.

    Args:
        network: the model; its weights are never changed.
        tokenizer: its tokenizer.
        name: hub id or folder; by default what the network's config says.
        revision: the hub commit, where known.
    """

    def __init__(
        self, network: nn.Module, tokenizer: Any, name: str | None = None, revision: str | None = None
    ) -> None:
        self.network = network.eval()
        self.tokenizer = tokenizer
        config: Any = getattr(network, "config", None)
        self.name = name or getattr(config, "_name_or_path", "") or type(network).__name__
        self.revision = revision or getattr(config, "_commit_hash", None)

    def __repr__(self) -> str:
        return f"TextModel({self.name}, {type(self.network).__name__}, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the network's inputs go."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's weights."""
        return next(p.dtype for p in self.network.parameters() if p.is_floating_point())

    def sites(self, pattern: str | Sequence[str] | None = None) -> list[Site]:
        """The sites a pattern names; see `lineas.sites.find_sites`."""
        return find_sites(self.network, pattern)

    def batch(self, prompts: Sequence[str], max_length: int = 128) -> TextBatch:
        """Prompts as token ids, each cut at `max_length` tokens, sorted by length into parts with little padding.

        The beginning-of-sequence token is in where the tokenizer adds one.

        Raises:
            LineasError: when a prompt has no tokens.
        """
        if not prompts:
            raise LineasError("a batch needs at least one prompt, none was given.")
        encoded: list[list[int]] = [self.tokenizer(prompt).input_ids for prompt in prompts]
        for prompt, ids in zip(prompts, encoded):
            if not ids:
                raise LineasError(f"the prompt {prompt!r} has no tokens; remove it.")
        truncated = sum(len(ids) > max_length for ids in encoded)
        encoded = [ids[:max_length] for ids in encoded]
        parts: list[list[int]] = [[]]
        real = 0
        for row in sorted(range(len(encoded)), key=lambda row: len(encoded[row])):
            length = len(encoded[row])
            padded = length * (len(parts[-1]) + 1)
            if parts[-1] and padded - (real + length) > PADDING_SHARE * padded:
                parts.append([])
                real = 0
            parts[-1].append(row)
            real += length
        return TextBatch([self._part([encoded[r] for r in rows], rows) for rows in parts], len(prompts), truncated)

    def run(self, part: TextPart) -> None:
        """One forward pass over a part; what is wanted of it is read by hooks, so nothing is returned."""
        self.network(input_ids=part.ids, attention_mask=part.mask, use_cache=False)

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        temperature: float = 1.0,
        top_p: float = 0.3,
        repetition_penalty: float = 1.2,
        seed: int = 0,
        batch_size: int = 32,
        chat: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Continue each prompt; the same seed gives the same texts.

        The defaults are the sampling of the paper's evaluation (arXiv 2503.10679, section 4).

        Args:
            prompts: texts to continue.
            max_new_tokens: at most so many tokens are added.
            temperature: 0 for greedy.
            top_p: nucleus of the sampling.
            repetition_penalty: 1 for none.
            seed: of the sampling, for the whole call.
            batch_size: prompts that run together; part of what makes a run reproducible.
            chat: give each prompt as a user's turn through the tokenizer's chat template.
            progress: called with the number of prompts done.

        Returns:
            the continuations alone, in the order of the prompts.
        """
        if isinstance(prompts, str):
            raise LineasError("generate takes a list of prompts, not one string; write ['...'].")
        texts = [self._as_chat(prompt) if chat else prompt for prompt in prompts]
        encoded = [self.tokenizer(text, add_special_tokens=not chat).input_ids for text in texts]
        empty = [prompt for prompt, ids in zip(prompts, encoded) if not ids]
        if empty:
            raise LineasError(f"the prompt {empty[0]!r} has no tokens; give it at least one word.")
        sampling: dict[str, Any] = {"do_sample": temperature > 0, "repetition_penalty": repetition_penalty}
        if temperature > 0:
            sampling |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
        out = [""] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))  # alike lengths together: less padding
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            for start in range(0, len(order), batch_size):
                rows = sorted(order[start : start + batch_size])  # in the order given, as strengths a row are
                width = max(len(encoded[i]) for i in rows)
                ids = torch.full((len(rows), width), self._pad_id())
                mask = torch.zeros(len(rows), width, dtype=torch.long)
                for at, i in enumerate(rows):  # padding on the left, so that all continue at the same column
                    ids[at, width - len(encoded[i]) :] = torch.tensor(encoded[i])
                    mask[at, width - len(encoded[i]) :] = 1
                made = self.network.generate(  # type: ignore[operator]
                    input_ids=ids.to(self.device),
                    attention_mask=mask.to(self.device),
                    max_new_tokens=max_new_tokens,
                    pad_token_id=self._pad_id(),
                    **sampling,
                )
                for i, new in zip(rows, made[:, width:].tolist()):
                    out[i] = self._continuation(encoded[i], new)
                if progress:
                    progress(len(rows))
        return out

    def _continuation(self, prompt: list[int], new: list[int]) -> str:
        """The text that new ids add to a prompt; decoded alone they would lose their first space in some tokenizers."""
        before, whole, alone = self.tokenizer.batch_decode([prompt, [*prompt, *new], new], skip_special_tokens=True)
        return whole[len(before) :] if whole.startswith(before) else alone  # else the prompt ends inside a character

    def _as_chat(self, prompt: str) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise LineasError(f"{self.name} has no chat template; leave out --chat (chat=True).")
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )

    def _pad_id(self) -> int:
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        return 0

    def _part(self, encoded: list[list[int]], rows: list[int]) -> TextPart:
        width = max(len(ids) for ids in encoded)
        ids = torch.full((len(encoded), width), self._pad_id())
        mask = torch.zeros(len(encoded), width, dtype=torch.long)
        for at, one in enumerate(encoded):
            ids[at, : len(one)] = torch.tensor(one)
            mask[at, : len(one)] = 1
        return TextPart(ids.to(self.device), mask.to(self.device), torch.tensor(rows, device=self.device))
