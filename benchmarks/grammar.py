"""Whether responses are whole, whatever is drawn, and whether a model that may choose writes and draws as it is asked.

    python benchmarks/grammar.py [--samples 1000] [--phrasings 6] [--model NAME]

Samples are drawn at temperature 2 by the model and by its base LLM with image tokens that it has never learned. The choice is
between a text and an image at every token: nothing but the instruction says which is meant.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from llmcxr.foundation.assets import DEFAULT_MODEL
from llmcxr.inference.backend import Request, Response, Sampling
from llmcxr.inference.grammar import segments
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.inference.policies import Conversation
from llmcxr.inference.transformers_backend import TransformersBackend
from llmcxr.instructions.example import Turn
from llmcxr.tasks import cxr_to_report, cxr_vqa, report_to_cxr
from llmcxr.vocabulary.growing import grow_language_model, table_of
from llmcxr.vocabulary.language_model import load_language_model

REPORTS = ("Large right pleural effusion.", "The heart is enlarged. No pneumothorax.", "The lungs are clear.")
MOST = 32  # tokens of text, in which an image counts as one


def whole(backend: TransformersBackend, tokens: list[int], response: Response) -> bool:
    """Whether each image has all of its codes, each text is text, and what ended says so."""
    body = tokens[:-1] if tokens[-1] == backend.end_id else tokens
    parts = list(segments(body, backend.vocabulary.is_image, backend.image_length))
    images = [ids for image, ids in parts if image]
    texts = [token for image, ids in parts if not image for token in ids]
    found = [s for s in response.segments if not isinstance(s, str)]
    return (
        all(len(ids) == backend.image_length for ids in images)
        and [s.tolist() for s in found] == [(np.array(ids) - backend.vocabulary.first_id).tolist() for ids in images]
        and all(backend._text[token] and token != backend.end_id for token in texts)
        and len(images) + len(texts) + (body is not tokens) <= MOST
        and response.complete == (body is not tokens)
    )


def drawn(backend: TransformersBackend, prompts: Sequence[list[int]], samples: int) -> Counter[str]:
    """How many of `samples` responses in turn are whole, and hold what."""
    count: Counter[str] = Counter()
    with tqdm(total=samples, unit="response") as bar:
        for first in range(0, samples, 50):
            numbers = range(first, min(first + 50, samples))
            asked = [
                Request(prompts[i % len(prompts)], "in turn", Sampling(2.0, max_new_tokens=MOST, seed=i))
                for i in numbers
            ]
            tokens: list[list[int]] = [[] for _ in asked]
            for number, token in backend.stream(asked):
                tokens[number].append(token)
            for own, request in zip(tokens, asked, strict=True):
                response = backend.response(own, request)
                kinds = {type(s) for s in response.segments}
                count["whole"] += whole(backend, own, response)
                count[
                    "text and images" if len(kinds) == 2 else "images only" if np.ndarray in kinds else "text only"
                ] += 1
            bar.update(len(asked))
    return count


def untrained(model: LlmCxr) -> TransformersBackend:
    """The base LLM, with random image rows as large as its own."""
    own = model.asker
    base = load_language_model(model.info.base)
    table = table_of(base)
    random = torch.randn(own.vocabulary.size, table.shape[1], generator=torch.Generator().manual_seed(0))
    grow_language_model(base, own.vocabulary, random * table.std())
    return TransformersBackend(base.eval(), own.vocabulary, own.template, model.info.grid**2)


def chosen(model: LlmCxr, sampling: Sampling, phrasings: int) -> str:
    """What the model writes or draws where it may choose, by what it is asked for."""
    codes = model.draw_codes(REPORTS, candidates=1)
    asked: dict[str, list[Conversation]] = {
        "a drawing": [(Turn(p, text),) for p in report_to_cxr.PHRASINGS[:phrasings] for text in REPORTS],
        "a report": [(Turn(p, own),) for p in cxr_to_report.PHRASINGS[:phrasings] for own in codes],
        "an answer": [cxr_vqa.TASK.prompt(own, "Is there cardiomegaly?") for own in codes],
    }
    lines = []
    for what, conversations in asked.items():
        kind = np.ndarray if what == "a drawing" else str
        responses = model.asker.responses(conversations, "in turn", sampling)
        right = sum([type(s) for s in r.segments] == [kind] for r in responses)
        lines.append(f"  asked for {what}: {right} of {len(responses)} are that and nothing else")
    return "\n".join(lines)


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--samples", type=int, default=100, help="of each model (default: %(default)s)")
    parser.add_argument("--phrasings", type=int, default=2, help="of each instruction (default: %(default)s)")
    arguments = parser.parse_args()
    model = LlmCxr.from_pretrained(arguments.model)
    assert isinstance(model.asker.backend, TransformersBackend)
    prompts = model.asker.prompts([(Turn("Write a report, then draw it."),), report_to_cxr.TASK.prompt(REPORTS[0])])
    for name, backend in (("tuned", model.asker.backend), ("untrained", untrained(model))):
        found = drawn(backend, prompts, arguments.samples)
        rest = ", ".join(f"{value} {key}" for key, value in sorted(found.items()) if key != "whole")
        print(f"{name}, temperature 2: {found['whole']} of {arguments.samples} are whole ({rest})", flush=True)
    print(f"tuned, greedy\n{chosen(model, Sampling(max_new_tokens=48), arguments.phrasings)}", flush=True)


if __name__ == "__main__":
    main()
