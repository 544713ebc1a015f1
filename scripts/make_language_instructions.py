"""Write the shipped language instructions: our own prompts, answered by the base model itself.

Training on the base model's own answers is the gentlest guard against forgetting: it asks the tuned model to stay where it
was on ordinary language. Run `python scripts/make_language_instructions.py`; it takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmcxr.foundation.artifacts import atomic_path
from llmcxr.foundation.assets import fetch

DATA = Path(__file__).parents[1] / "src" / "llmcxr" / "tasks" / "data"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# A sentence ends in punctuation that does not belong to a list number such as "3."
SENTENCE_END = re.compile(r"(?<!\d)[.!?][\"')\]]?(?=\s|$)")


def trim(text: str, finished: bool) -> str:
    """The answer as it stands where the model ended it, else up to its last full sentence ("" if there is none)."""
    text = text.strip()
    if finished:
        return text
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    text = text[: ends[-1]] if ends else ""
    return text + "\n```" if text.count("```") % 2 else text


def fault(text: str) -> str:
    """Why an answer is not worth learning, "" if it is."""
    if not text:
        return "no full sentence"
    sentences = [s.strip().lower() for s in re.split(r"[.!?\n]+", re.sub(r"(?m)^\s*(\d+[.)]|[-*])\s*", "", text))]
    sentences = [s for s in sentences if len(s) > 3]
    if len(set(sentences)) < len(sentences):
        return "repeats a sentence"
    words = text.lower().split()
    grams = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return "repeats a phrase" if grams and max(grams.values()) >= 3 else ""


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=Path, default=DATA / "language_prompts.jsonl")
    parser.add_argument("--output", type=Path, default=DATA / "language_instructions.jsonl")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=80, help="most new tokens an answer may have")
    arguments = parser.parse_args()

    rows = [json.loads(line) for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
    folder = fetch("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.bfloat16).eval()
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")}

    kept: list[dict[str, str]] = []
    dropped: Counter[str] = Counter()
    for start in range(0, len(rows), arguments.batch):
        batch = rows[start : start + arguments.batch]
        contents = [f"{row['instruction']}\n\n{row['input']}".strip() for row in batch]
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            for content in contents
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=arguments.tokens,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id,
        )
        for row, ids in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            finished = any(token in ends for token in ids)
            response = trim(tokenizer.decode(ids, skip_special_tokens=True), finished)
            if reason := fault(response):
                dropped[reason] += 1
            else:
                kept.append({**row, "response": response})
        print(f"{start + len(batch)}/{len(rows)} prompts, {len(kept)} answers kept", flush=True)
    with atomic_path(arguments.output) as temporary:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        temporary.write_text("".join(lines), encoding="utf-8")
    print(f"{arguments.output}: {len(kept)} answers; left out: {dict(dropped) or 'none'}")


if __name__ == "__main__":
    main()
