"""TextModel: a causal language model and its tokenizer, with batches of prompts, runs for capture, and generation."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lineas.checks import PROBABILITY, REPETITION, SEED, TEMPERATURE, TOGETHER, TOKENS, as_texts
from lineas.errors import LineasError, reading
from lineas.files import writing
from lineas.models import checkpoint, predictions
from lineas.models.packing import reason_not_packable
from lineas.models.read_back import verify_written
from lineas.models.samples import Batch, Samples
from lineas.models.sampling import Finite, Nucleus
from lineas.models.text_batches import PackedPart, PaddedPart, pack, pad, padded
from lineas.modules import input_device, non_text_modules, text_config, weights_type
from lineas.sites import Site, find_sites


class TextModel:
    """A causal language model of transformers and its tokenizer.

    Args:
        network: the network; its weights are not changed.
        tokenizer: the network's tokenizer.
        name: hub id or folder; by default the name in the network's config.
        revision: the hub commit; by default the one in the network's config.
    """

    def __init__(
        self, network: nn.Module, tokenizer: Any, name: str | None = None, revision: str | None = None
    ) -> None:
        self.network = network.eval()
        self.tokenizer = tokenizer
        config: Any = getattr(network, "config", None)
        self.name = name or getattr(config, "_name_or_path", "") or type(network).__name__
        self.revision = revision or getattr(config, "_commit_hash", None)
        self._warned_too_long = False
        self._packs_by_attention: dict[str | None, bool] = {}
        self.provenance: dict[str, Any] | None = None  # facts about the fold, for a folded model

    def __repr__(self) -> str:
        return f"TextModel({self.name}, {type(self.network).__name__}, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """The device of the network's inputs."""
        return input_device(self.network)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's weights."""
        return weights_type(self.network)

    @property
    def facts(self) -> dict[str, Any]:
        """The settings that determine a prompt's activations: whether the tokenizer's end of text was left out."""
        return {"end_of_text": "left out"} if special_around(self.tokenizer)[1] else {}

    def save_pretrained(self, folder: str | Path, overwrite: bool = False, max_shard_size: str | int = "5GB") -> Path:
        """Write a checkpoint that transformers and every engine read: weights, config, tokenizer.

        Args:
            folder: the folder to write; after a failure there is none.
            overwrite: whether to replace a checkpoint that is there; default False.
            max_shard_size: maximum size of a weights file, such as "5GB" (default) or a number of bytes.

        Raises:
            LineasError: when the folder exists and is not overwritten, or is no checkpoint.
        """
        folder, network = Path(folder), self.network
        if not hasattr(network, "save_pretrained"):
            raise LineasError(f"a {type(network).__name__} cannot write itself; give a network of transformers.")
        with writing.new_folder(folder, checkpoint.KIND, overwrite) as beside:
            network.save_pretrained(beside, max_shard_size=max_shard_size)  # pyright: ignore[reportCallIssue]
            verify_written(beside, network)
            checkpoint.save_tokenizer(beside, self.tokenizer)
            checkpoint.write_provenance(beside, self.provenance)
        return folder

    def sites(self, pattern: str | Sequence[str] | None = None) -> list[Site]:
        """Return the sites that match a pattern; see `lineas.sites.find_sites`."""
        return find_sites(self.network, pattern)

    def default_sites(self, pattern: str | None) -> list[Site]:
        """Return the default sites of a method, from its pattern; None for the norms before the MLPs."""
        return self.sites(pattern)

    def with_network(self, network: nn.Module) -> TextModel:
        """Return the same model with another network, such as a folded one."""
        return TextModel(network, self.tokenizer, self.name, self.revision)

    def batch(
        self, prompts: Sequence[str], max_length: int = 128, limit: int | None = None
    ) -> Batch[PackedPart] | Batch[PaddedPart]:
        """Return a batch of prompts, sorted by length, and packed (see `lineas.models.packing`) or else padded.

        A beginning-of-sequence token is included if the tokenizer adds one; an end-of-sequence token is not.

        Args:
            prompts: one prompt or more.
            max_length: maximum number of tokens of a prompt, default 128; the rest is cut.
            limit: maximum number of tokens in a part, which runs at once; None for no limit.

        Raises:
            LineasError: when a prompt has no tokens, or more than the network reads.
        """
        return self.samples(prompts, max_length).batch(limit)

    def samples(self, prompts: Sequence[str], max_length: int = 128) -> Samples[PackedPart] | Samples[PaddedPart]:
        """Return encoded prompts, from which batches are made as by `batch`.

        Args:
            prompts: one prompt or more.
            max_length: maximum number of tokens of a prompt, default 128; the rest is cut.

        Raises:
            LineasError: when a prompt has no tokens, or more than the network reads.
        """
        if not self._packs:
            return self.padded_samples(prompts, max_length)
        ids, truncated = self.encode(prompts, max_length)
        return Samples(
            prompts, truncated, max_length, lambda rows, limit: pack([ids[i] for i in rows], limit, self.device), ids
        )

    def padded_samples(self, prompts: Sequence[str], max_length: int = 128) -> Samples[PaddedPart]:
        """Encode prompts with a row for each, padded on the right; batches of them run slower than packs."""
        ids, truncated = self.encode(prompts, max_length)

        def in_parts(rows: Sequence[int], limit: int | None) -> list[PaddedPart]:
            return pad([ids[row] for row in rows], limit, self.device, self.pad_id)

        return Samples(prompts, truncated, max_length, in_parts, ids)

    def encode(self, prompts: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
        """Return token ids, cut at `max_length`, and the number of prompts that were cut."""
        if not prompts:
            raise LineasError("a batch needs at least one prompt, none was given.")
        encoded = self.token_ids(prompts)
        for prompt, ids in zip(prompts, encoded):
            if not ids:
                raise LineasError(f"the prompt {prompt!r} has no tokens; remove it.")
        longest = max(map(len, encoded))
        if max_length <= self.special_before < longest:
            raise LineasError(
                f"max_length {max_length} leaves no token of any prompt beside the {self.special_before} that the "
                f"tokenizer puts before it; give at least {self.special_before + 1}."
            )
        cut = [ids[:max_length] for ids in encoded]
        self.check_length(max(map(len, cut)))
        return cut, sum(len(ids) > max_length for ids in encoded)

    def token_ids(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Return token ids of texts, with the tokens that the tokenizer puts before a text, without those after it.

        Args:
            texts: any number of texts.
            special: whether to include the tokens before a text; default True.

        Raises:
            LineasError: when one is not a string, or the tokenizer cannot read it.
        """
        as_texts("the prompts", texts)
        with reading(f"the tokenizer of {self.name} could not read a text"):
            encoded = [list(self.tokenizer(text, add_special_tokens=special).input_ids) for text in texts]
            after = special_around(self.tokenizer)[1] if special else 0
        return [ids[: len(ids) - after] for ids in encoded]

    @property
    def special_before(self) -> int:
        """The number of tokens such as `<s>` that the tokenizer puts before every text."""
        return special_around(self.tokenizer)[0]

    def check_length(self, longest: int, new: int = 0) -> None:
        """Check that the network can read texts of a length; warn once if it was only trained for shorter ones.

        Args:
            longest: number of tokens of the longest text.
            new: number of tokens to be added to it, default 0.

        Raises:
            LineasError: when there are more tokens than the network's table of positions has.
        """
        limit, is_table = self._position_limit
        if limit is None or longest + max(new - 1, 0) <= limit:  # the last new token is not read
            return
        has = f"the prompt has {longest:,} tokens" + (f", and {new:,} are to be added" if new else "")
        if is_table:
            raise LineasError(f"{has}; this network, {self.name}, reads {limit:,}. Cut it, or add fewer.")
        if not self._warned_too_long:
            self._warned_too_long = True
            warnings.warn(
                f"{has}, and {self.name} was made for {limit:,}; what it predicts beyond them may be nonsense.",
                stacklevel=4,
            )

    @cached_property
    def _position_limit(self) -> tuple[int | None, bool]:
        """The network's maximum number of tokens, and whether a table of positions makes it a hard limit."""
        text = text_config(self.network)
        names = ("max_position_embeddings", "n_positions", "max_seq_len")
        values = (getattr(text, name, None) for name in names)
        configured = next((n for n in values if isinstance(n, int) and n > 0), None)
        excluded = tuple(f"{part}." for part in non_text_modules(self.network))
        tables = [
            (name, module.num_embeddings)
            for name, module in self.network.named_modules()
            if isinstance(module, nn.Embedding) and re.search(r"(^|\.)(wpe|\w*pos\w*)$", name)
        ]
        tables += [
            (name, len(buffer)) for name, buffer in self.network.named_buffers() if name.endswith(".embed_positions")
        ]
        rows = [rows for name, rows in tables if not name.startswith(excluded)]
        return (min(n for n in (*rows, configured) if n is not None), True) if rows else (configured, False)

    @property
    def _packs(self) -> bool:
        """Whether prompts can be packed; tried once for each implementation of attention."""
        text = text_config(self.network)
        attention = getattr(text, "_attn_implementation", None)
        if attention not in self._packs_by_attention:
            if reason := reason_not_packable(self.network):
                slower = f"prompts of {self.name} are padded instead of packed, which is slower: {reason}."
                warnings.warn(slower, stacklevel=4)
            self._packs_by_attention[attention] = reason is None
        return self._packs_by_attention[attention]

    def run(self, part: PackedPart | PaddedPart) -> None:
        """Run one forward pass over a part; hooks read the activations."""
        part.run(self.network)

    def predict(self, part: PackedPart | PaddedPart) -> torch.Tensor:
        """Return the log-probabilities of the next token; see `lineas.models.predictions`."""
        return predictions.log_probabilities(self.network, part)

    def divergences(
        self, untouched: torch.Tensor, changed: torch.Tensor, part: PackedPart | PaddedPart
    ) -> torch.Tensor:
        """Return each text's divergence between predictions, in nats a token, `[b]`."""
        return predictions.divergences(untouched, changed, part)

    def log_likelihoods(self, predicted: torch.Tensor, part: PackedPart | PaddedPart) -> torch.Tensor:
        """Return the mean log-probability of each text's own next tokens, in nats a token, `[b]`."""
        return predictions.log_likelihoods(predicted, part)

    def sampled_score(
        self, predicted: torch.Tensor, part: PackedPart | PaddedPart, generator: torch.Generator
    ) -> torch.Tensor:
        """Return a random score of predictions, whose gradients have their Fisher information as covariance."""
        return predictions.sampled_score(predicted, part, generator)

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
            prompts: the texts to continue.
            max_new_tokens: maximum number of tokens to add, default 32.
            temperature: divisor of the logits, default 1; 0 for greedy decoding.
            top_p: share of the probability that the sampled tokens hold (nucleus sampling), default 0.3; 1 for all.
            repetition_penalty: divisor of the scores of tokens that occurred before, default 1.2; 1 for no penalty.
            seed: seed of the sampling for the whole call, default 0.
            batch_size: number of prompts that run together, default 32; sampled texts depend on it.
            chat: whether to give each prompt as a user's turn, through the tokenizer's chat template; default False.
            progress: function that is called with the number of finished prompts after each batch.

        Returns:
            the continuations without their prompts, in order.

        Raises:
            LineasError: when a prompt has no tokens, is too long with the new tokens, or the network's predictions are
                not finite.
        """
        prompts = as_texts("the prompts", prompts)
        max_new_tokens, seed = TOKENS.check("max_new_tokens", max_new_tokens), SEED.check("seed", seed)
        temperature, top_p = TEMPERATURE.check("temperature", temperature), PROBABILITY.check("top_p", top_p)
        repetition_penalty = REPETITION.check("repetition_penalty", repetition_penalty)
        batch_size = TOGETHER.check("batch_size", batch_size)
        encoded = self.token_ids([self._as_chat(p) for p in prompts] if chat else prompts, special=not chat)
        if empty := [prompt for prompt, ids in zip(prompts, encoded) if not ids]:
            raise LineasError(f"the prompt {empty[0]!r} has no tokens; give it at least one word.")
        generated = self.continue_ids(
            encoded, max_new_tokens, temperature, top_p, repetition_penalty, seed, batch_size, progress
        )
        return [self._continuation(ids, new) for ids, new in zip(encoded, generated)]

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
        """Continue token ids by token ids, padded after the end of a text; see `generate` for the arguments."""
        unused = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}  # transformers would warn about a checkpoint's own
        sampling: dict[str, Any] = {"do_sample": False, "repetition_penalty": repetition_penalty, **unused}
        sampling["logits_processor"] = [Finite(), *([Nucleus(temperature, top_p, seed)] if temperature > 0 else [])]
        self.check_length(max(map(len, encoded), default=0), max_new_tokens)
        results: list[list[int]] = [[] for _ in encoded]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # similar lengths need less padding
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                rows = sorted(order[start : start + batch_size])  # in the prompts' order, like strengths per row
                ids, mask = padded([encoded[i] for i in rows], self.pad_id, "left")  # all continue at the same column
                with reading(f"{self.name} could not continue the texts"):
                    output = self.network.generate(  # pyright: ignore[reportCallIssue]
                        input_ids=ids.to(self.device),
                        attention_mask=mask.to(self.device),
                        max_new_tokens=max_new_tokens,
                        pad_token_id=self.pad_id,
                        **sampling,
                    )
                for i, new in zip(rows, output[:, ids.shape[1] :].tolist()):
                    results[i] = new
                if progress:
                    progress(len(rows))
        return results

    def _continuation(self, prompt: list[int], new: list[int]) -> str:
        """Return the text that new ids add to a prompt; decoded alone, some tokenizers drop their first space."""
        before, whole, alone = self.tokenizer.batch_decode([prompt, [*prompt, *new], new], skip_special_tokens=True)
        return whole[len(before) :] if whole.startswith(before) else alone  # the prompt may end inside a character

    def _as_chat(self, prompt: str) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise LineasError(f"{self.name} has no chat template; leave out --chat (chat=True).")
        with reading(f"the chat template of {self.name} could not be filled in", "Leave out --chat (chat=True)."):
            turns = [{"role": "user", "content": prompt}]
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    @property
    def end_ids(self) -> set[int]:
        """The ids of the tokens at which generation stops."""
        config: Any = getattr(self.network, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        ends = ends if ends is not None else self.tokenizer.eos_token_id
        return set(ends if isinstance(ends, list) else [] if ends is None else [ends])

    @property
    def pad_id(self) -> int:
        """The id of the token that pads shorter rows."""
        tokens = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((token for token in tokens if token is not None), 0)


def special_around(tokenizer: Any) -> tuple[int, int]:
    """Return the numbers of tokens that a tokenizer puts before and after every text, such as `<s>` and `</s>`."""
    whole, plain = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    most = len(whole) - len(plain)
    before = next((k for k in range(most + 1) if whole[k : k + len(plain)] == plain), None)
    return (int(whole[:1] != plain[:1]), 0) if before is None else (before, most - before)
