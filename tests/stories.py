"""A small Llama trained here on little stories put together here: real enough to steer, and nothing is downloaded."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY = 512
STORIES, STEPS, ROWS, TOKENS, RATE = 400, 200, 8, 32, 8e-3

GIRLS, BOYS = ["Lily", "Sue", "Mia", "Anna"], ["Tom", "Ben", "Max", "Sam"]
ANIMALS, COLOURS = ["dog", "cat", "bird", "fish", "bear"], ["red", "blue", "big", "little", "nice"]
THINGS, PLACES = ["ball", "toy", "box", "book", "car"], ["park", "house", "garden", "tree", "river"]
SAD = [
    "The {animal} ran away from {his} {place}.",
    "{He} was sad and cried all day.",
    "{Name} lost {his} {colour} {thing}.",
    "{His} {thing} was broken, and {he} was very sad.",
    "Rain fell on {his} {place} all day.",
]
GLAD = [
    "The sun was warm and bright.",
    "{He} smiled at {his} mom.",
    "They played happily all day.",
    "{Name} found a {colour} {thing}.",
    '{He} was very happy and said, "Thank you, mom!"',
]
PLAIN = [
    "A {animal} sang on the {place}.",
    "{He} saw a {colour} {animal}.",
    "One day, {he} went to the {place} to play.",
    "{He} liked to play with {his} {thing}.",
    "{His} {animal} sat on the {thing} and slept.",
]
BEGINNINGS = [
    "Once upon a time, there was a {kind} named {Name}.",
    "Once upon a time, {Name} had a {colour} {animal}.",
    "{Name} was a {kind}.",
    "{Name} liked to play.",
]


def stories(count: int, seed: int = 0) -> list[str]:
    """Little stories of five sentences about a girl or a boy, sad or glad, drawn from the sentences above."""
    drawn = random.Random(seed)
    made = []
    for _ in range(count):
        girl = drawn.random() < 0.6
        words = {"he": "she", "his": "her", "kind": "girl"} if girl else {"he": "he", "his": "his", "kind": "boy"}
        words["name"] = drawn.choice(GIRLS if girl else BOYS)
        words |= {"He": words["he"].title(), "His": words["his"].title(), "Name": words["name"]}
        sentences = [drawn.choice(BEGINNINGS), drawn.choice(PLAIN)]
        sentences += drawn.sample(drawn.choice([SAD, GLAD]), 2)
        sentences.append(drawn.choice(PLAIN))
        for i, sentence in enumerate(sentences):
            things = {"animal": ANIMALS, "colour": COLOURS, "thing": THINGS, "place": PLACES}
            sentences[i] = sentence.format(**words, **{name: drawn.choice(many) for name, many in things.items()})
        made.append(" ".join(sentences))
    return made


def tokenizer(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    """Byte-pair encoding as Llama's: `<s>` first, a space before the text, and bytes for what it has never seen."""
    special = ["<unk>", "<s>", "</s>"]
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+|[^\w▁]"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special + alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    ])  # fmt: skip
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )


def trained(texts: list[str], tokens: transformers.PreTrainedTokenizerFast) -> transformers.LlamaForCausalLM:
    """Five blocks of 64 neurons after a few seconds of training, the same at every call."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True,
        initializer_range=0.05,
    )  # fmt: skip
    stream = torch.tensor([token for text in texts for token in [*tokens(text).input_ids, 2]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.LlamaForCausalLM(config).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.25)
        for _ in range(STEPS):
            begins = torch.randint(0, len(stream) - TOKENS, (ROWS, 1))
            rows = stream[begins + torch.arange(TOKENS)]
            loss = network(input_ids=rows, labels=rows).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def save(folder: Path) -> Path:
    """Train the small Llama and save it with its tokenizer."""
    texts = stories(STORIES)
    tokens = tokenizer(texts)
    trained(texts, tokens).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder
