"""TextModel: a causal language model with its tokenizer; batches of prompts, runs for capture, generation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.models import checkpoint
from lineas.models.batches import Batch, PackedPart, PaddedPart, pack, pad
from lineas.models.packing import why_not
from lineas.models.sampling import Nucleus
from lineas.sites import Site, find_sites


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
        self.facts: dict[str, Any] = {}  # nothing beside the prompts decides what a text activates
        self.provenance: dict[str, Any] | None = None  # of a folded model: what is in its weights

    def __repr__(self) -> str:
        return f"TextModel({self.name}, {type(self.network).__name__}, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the network's inputs go."""
        return next(weight.device for weight in self.network.parameters() if not weight.is_meta)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's weights."""
        return next(p.dtype for p in self.network.parameters() if p.is_floating_point())

    def save_pretrained(self, folder: str | Path, overwrite: bool = False, max_shard_size: str | int = "5GB") -> Path:
        """Write a checkpoint that transformers and every engine read: weights, config, tokenizer.

        Args:
            folder: to be made; it is there whole or not at all.
            overwrite: replace a checkpoint that is there.
            max_shard_size: of a file of weights, such as "5GB" or a number of bytes.

        Raises:
            LineasError: when the folder exists and is not to be replaced, or is no checkpoint.
        """
        return checkpoint.save(Path(folder), self.network, self.tokenizer, self.provenance, overwrite, max_shard_size)

    def sites(self, pattern: str | Sequence[str] | None = None) -> list[Site]:
        """The sites a pattern names; see `lineas.sites.find_sites`."""
        return find_sites(self.network, pattern)

    def default_sites(self, pattern: str | None) -> list[Site]:
        """The sites of a method that names them by a pattern; None for the norms before the MLPs."""
        return self.sites(pattern)

    def with_network(self, network: nn.Module) -> TextModel:
        """The same model with another network, such as a folded one."""
        return TextModel(network, self.tokenizer, self.name, self.revision)

    def batch(
        self, prompts: Sequence[str], max_length: int = 128, limit: int | None = None
    ) -> Batch[PackedPart] | Batch[PaddedPart]:
        """Prompts as token ids, sorted by length, packed end to end (see `lineas.models.packing`) or else padded.

        The beginning-of-sequence token is in where the tokenizer adds one.

        Args:
            prompts: at least one.
            max_length: tokens of a prompt; the rest is cut.
            limit: tokens of a part, which runs at once; None for no limit.

        Raises:
            LineasError: when a prompt has no tokens.
        """
        if not prompts:
            raise LineasError("a batch needs at least one prompt, none was given.")
        if not self._packs:
            return self.padded_batch(prompts, max_length, limit)
        encoded, truncated = self.encode(prompts, max_length)
        return Batch(pack(encoded, limit, self.device), len(prompts), truncated, max_length, limit)

    def padded_batch(
        self, prompts: Sequence[str], max_length: int = 128, limit: int | None = None
    ) -> Batch[PaddedPart]:
        """The same with a row a prompt, padded on the right; slower than a pack."""
        encoded, truncated = self.encode(prompts, max_length)
        return Batch(pad(encoded, limit, self.device, self.pad_id), len(prompts), truncated, max_length, limit)

    def encode(self, prompts: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
        """Token ids, cut at `max_length`, and how many prompts were cut."""
        if not prompts:
            raise LineasError("a batch needs at least one prompt, none was given.")
        encoded: list[list[int]] = [self.tokenizer(prompt).input_ids for prompt in prompts]
        for prompt, ids in zip(prompts, encoded):
            if not ids:
                raise LineasError(f"the prompt {prompt!r} has no tokens; remove it.")
        return [ids[:max_length] for ids in encoded], sum(len(ids) > max_length for ids in encoded)

    @cached_property
    def starts_with_special(self) -> bool:
        """Whether the tokenizer puts a token such as `<s>` in front of every text."""
        return self.tokenizer("a").input_ids[:1] != self.tokenizer("a", add_special_tokens=False).input_ids[:1]

    @cached_property
    def _packs(self) -> bool:
        reason = why_not(self.network)
        if reason:
            warnings.warn(
                f"prompts of {self.name} are padded instead of packed, which is slower: {reason}.", stacklevel=4
            )
        return reason is None

    def run(self, part: PackedPart | PaddedPart) -> None:
        """One forward pass over a part; what is wanted of it is read by hooks, so nothing is returned."""
        part.run(self.network)

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
        made = self.continue_ids(
            encoded, max_new_tokens, temperature, top_p, repetition_penalty, seed, batch_size, progress
        )
        return [self._continuation(ids, new) for ids, new in zip(encoded, made)]

    def continue_ids(
        self,
        encoded: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        repetition_penalty: float,
        seed: int,
        batch_size: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """The same as `generate` from token ids to token ids, filled up after the end of a text."""
        unused = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}  # a checkpoint's own would be warned of
        sampling: dict[str, Any] = {"do_sample": False, "repetition_penalty": repetition_penalty, **unused}
        if temperature > 0:
            sampling["logits_processor"] = [Nucleus(temperature, top_p, seed)]  # one for the whole call
        out: list[list[int]] = [[] for _ in encoded]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # alike lengths together: less padding
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                rows = sorted(order[start : start + batch_size])  # in the order given, as strengths a row are
                width = max(len(encoded[i]) for i in rows)
                ids = torch.full((len(rows), width), self.pad_id)
                mask = torch.zeros(len(rows), width, dtype=torch.long)
                for at, i in enumerate(rows):  # padding on the left, so that all continue at the same column
                    ids[at, width - len(encoded[i]) :] = torch.tensor(encoded[i])
                    mask[at, width - len(encoded[i]) :] = 1
                made = self.network.generate(  # type: ignore[operator]
                    input_ids=ids.to(self.device),
                    attention_mask=mask.to(self.device),
                    max_new_tokens=max_new_tokens,
                    pad_token_id=self.pad_id,
                    **sampling,
                )
                for i, new in zip(rows, made[:, width:].tolist()):
                    out[i] = new
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

    @property
    def end_ids(self) -> set[int]:
        """The tokens at which generation stops."""
        config: Any = getattr(self.network, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        ends = ends if ends is not None else self.tokenizer.eos_token_id
        return set(ends if isinstance(ends, list) else [] if ends is None else [ends])

    @property
    def pad_id(self) -> int:
        """What fills rows that are shorter than others."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        return 0
