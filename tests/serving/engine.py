"""Run in a process of its own: greedy continuations of vLLM's Python class, as JSON.

    python engine.py MODEL eager|compiled OUT STEERING [STEERING ...]      (an empty one for none)

Every prompt is continued once for each steering, all in one batch. The
variables RANKS, DTYPE and MODEL_IMPL are vLLM's tensor_parallel_size, dtype and model_impl.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

PROMPTS = ["You are a", "My neighbour said that", "Dear Sir, I am writing", "The referee was"]


def main(model: str, mode: str, out: str, *steering: str) -> None:
    """Continue the prompts and write tokens and log-probabilities."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model,
        dtype=os.environ.get("DTYPE", "float32"),
        model_impl=os.environ.get("MODEL_IMPL", "auto"),
        max_model_len=256,
        max_num_seqs=64,
        enforce_eager=mode == "eager",
        tensor_parallel_size=int(os.environ.get("RANKS", "1")),
    )
    asked = [(prompt, said) for said in steering for prompt in PROMPTS]
    params = [
        SamplingParams(
            temperature=0, max_tokens=24, ignore_eos=True, logprobs=0, extra_args={"lineas": said} if said else None
        )
        for _, said in asked
    ]
    made = engine.generate([prompt for prompt, _ in asked], params, use_tqdm=False)
    rows = [
        {
            "prompt": prompt,
            "steering": said,
            "text": result.outputs[0].text,
            "tokens": list(result.outputs[0].token_ids),
            "logprobs": [next(iter(at.values())).logprob for at in result.outputs[0].logprobs],
        }
        for (prompt, said), result in zip(asked, made)
    ]
    Path(out).write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
