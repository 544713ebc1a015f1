"""Whether llama.cpp answers as we do: greedy tokens of text and images from a model's GGUF against those of this package.

    python benchmarks/gguf_parity.py phantom --prompts 50 -o parity.json     # about 5 minutes on two cores; goes on where it stopped
    python benchmarks/gguf_parity.py phantom --prompts 6 --tokens 16         # a quick look

Half of the prompts ask for a drawing, the others are questions about those drawings. Ours are in float32. llama.cpp (the package
xllamacpp, extra `gguf`) gets the same token ids. Rows of images are told apart by biases of logits, as its server takes them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader

from llmcxr import LlmCxr
from llmcxr.formats.gguf import WEIGHTS, Weights, export_gguf
from llmcxr.foundation.artifacts import read_json, write_json
from llmcxr.foundation.optional import require
from llmcxr.inference.backend import GREEDY, Request
from llmcxr.instructions.rendering import response_end
from llmcxr.tasks import cxr_to_report, cxr_vqa, report_to_cxr
from llmcxr.vocabulary.growing import table_of

SIDES, FINDINGS = ("left", "right"), ("pleural effusion", "pneumothorax", "nodule", "atelectasis", "mass")
PLACES = ("apex", "base", "mid zone", "hilum", "costophrenic angle")
QUESTIONS = (
    "Is there a pleural effusion?",
    "Which findings does this chest radiograph show?",
    "Is the heart enlarged?",
)
_ALIKE = 100.0  # added to the logits of all tokens of an image: above every other, and no order among them changes


class LlamaCpp:
    """A GGUF file, run by llama.cpp."""

    def __init__(self, file: Path, context: int = 1024, threads: int = 1) -> None:
        llama = require("xllamacpp", "running a GGUF file here", "it aside and run the file by any llama.cpp")
        params = llama.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.warmup, params.n_gpu_layers = context, 1, False, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_type_k = params.cache_type_v = (
            llama.ggml_type.GGML_TYPE_F32
        )  # keys and values: weights are compared, not these
        params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.verbosity = -1
        self.server = llama.Server(params)

    def ask(self, path: str, **values: Any) -> Any:
        """What the server answers."""
        # Its own address, whatever proxy the user has for the network.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(values).encode())
        with opener.open(request) as answer:
            return json.load(answer)

    def tokens(self, prompt: Sequence[int], most: int, bias: Sequence[tuple[int, float | bool]]) -> list[int]:
        """Greedy tokens after `prompt`, at most `most`; of `bias` see `logit_bias` of llama.cpp's server (False: never)."""
        answer = self.ask(
            "/completion",
            prompt=list(prompt),
            n_predict=most,
            temperature=0.0,
            logit_bias=[list(pair) for pair in bias],
            return_tokens=True,
            cache_prompt=False,
        )
        return list(answer["tokens"])

    def tokenized(self, text: str) -> list[int]:
        """Ids of a text in which no name of a control token is one."""
        return list(self.ask("/tokenize", content=text, add_special=False, parse_special=False)["tokens"])


def requests_of(model: LlmCxr, count: int, most: int) -> list[Request]:
    """`count` prompts: drawings, then questions about what was drawn."""
    rng, half = np.random.default_rng(0), count // 2
    texts = [
        f"There is a {rng.choice(SIDES)} {rng.choice(FINDINGS)} at the {rng.choice(PLACES)}. Heart {'normal' if i % 2 else 'large'}."
        for i in range(half)
    ]
    greedy = dataclasses.replace(GREEDY, max_new_tokens=most, guidance=1.0)
    prompts = model.asker.prompts([report_to_cxr.TASK.prompt(text) for text in texts], "image")
    drawings = [Request(prompt, "image", greedy) for prompt in prompts]
    codes = [response.codes for response in model.asker.backend.generate(drawings)]
    turns = []
    for i in range(count - half):
        own = codes[i % half]
        turns.append(cxr_to_report.TASK.prompt(own) if i % 4 == 0 else cxr_vqa.TASK.prompt(own, QUESTIONS[i % 4 - 1]))
    return [*drawings, *(Request(prompt, "text", greedy) for prompt in model.asker.prompts(turns))]


def ours(model: LlmCxr, requests: Sequence[Request]) -> list[list[int]]:
    """Token ids of each response, without the one that ends a text."""
    tokens: list[list[int]] = [[] for _ in requests]
    for number, token in model.asker.backend.stream(requests):
        tokens[number].append(token)
    end = response_end(model.asker.template, model.asker.vocabulary)[-1]
    return [row[:-1] if row[-1] == end else row for row in tokens]


def theirs(model: LlmCxr, llama: LlamaCpp, requests: Sequence[Request]) -> Iterator[list[int]]:
    """The same by llama.cpp."""
    vocabulary = model.asker.vocabulary
    image = range(vocabulary.first_id, vocabulary.first_id + vocabulary.size)
    end = response_end(model.asker.template, vocabulary)[-1]
    never = vocabulary.never_in_text(len(table_of(model.asker.backend.model)), end)
    for request in requests:
        if request.grammar == "image":
            yield llama.tokens(request.prompt, model.info.grid**2, [(i, _ALIKE) for i in image])
        else:
            found = llama.tokens(request.prompt, request.sampling.max_new_tokens, [(i, False) for i in never])
            yield found[:-1] if found[-1:] == [end] else found


def sizes(file: Path) -> dict[str, int]:
    """What the file says of its vocabulary, and how long that is."""
    reader = GGUFReader(file)
    table = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    return {
        "vocab_size": int(reader.fields["llama.vocab_size"].contents()),
        "tokens": len(reader.fields["tokenizer.ggml.tokens"].data),
        "rows": int(table.shape[1]),
    }


def compare(own: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that are the same up to the first that is not."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, other, strict=False)))


def margin(model: LlmCxr, prompt: Sequence[int], own: Sequence[int], other: Sequence[int]) -> float | None:
    """By how much (logits) ours preferred its first token that differs: a tie of rounding is near 0. None where none differs."""
    same = compare(own, other)
    if own == other or same >= min(len(own), len(other)):
        return None
    backend: Any = model.asker.backend
    with torch.inference_mode():
        logits = backend.model(torch.tensor([[*prompt, *own[:same]]])).logits[0, -1]
    return round(float(logits[own[same]] - logits[other[same]]), 5)


def measure(
    model: LlmCxr, name: str, requests: Sequence[Request], weights: Weights, known: Sequence[dict[str, Any]] = ()
) -> Iterator[dict[str, Any]]:
    """How llama.cpp answers each request after those that are `known`, beside ours; first what the file says of its sizes."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{weights}.gguf"
        export_gguf(name, file, weights)
        yield {
            "megabytes": round(file.stat().st_size / 1e6),
            **sizes(file),
            "tokenizer": len(model.asker.vocabulary.tokenizer),
        }
        left = requests[len(known) :]
        llama = LlamaCpp(file)
        for request, mine, other in zip(left, ours(model, left), theirs(model, llama, left), strict=True):
            yield {
                "grammar": request.grammar,
                "tokens": len(mine),
                "same": compare(mine, other),
                "equal": mine == other,
                "margin": margin(model, request.prompt, mine, other),
            }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of rows and tokens that are equal."""
    kinds = {kind: [row for row in rows if row["grammar"] == kind] for kind in ("text", "image")}
    margins = [row["margin"] for row in rows if row["margin"] is not None]
    return {
        "equal": round(sum(row["equal"] for row in rows) / len(rows), 3),
        **{f"equal {kind}": f"{sum(row['equal'] for row in of)} of {len(of)}" for kind, of in kinds.items()},
        "tokens before the first that differs": round(sum(r["same"] for r in rows) / sum(r["tokens"] for r in rows), 4),
        "largest margin where they part": max(margins, default=0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64, help="most of a text")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("gguf_parity.json"), help="what is there already is not asked again"
    )
    arguments = parser.parse_args()
    what = {"model": arguments.model, "prompts": arguments.prompts, "tokens": arguments.tokens}
    result: dict[str, Any] = read_json(arguments.output) if arguments.output.exists() else {}
    if {key: result.get(key) for key in what} != what:
        result = dict(what)
    model = LlmCxr.from_pretrained(arguments.model, "cpu", "float32")
    requests = requests_of(model, arguments.prompts, arguments.tokens)
    for weights in WEIGHTS:
        own = result.setdefault(weights, {"rows": []})
        if len(own["rows"]) < len(requests):
            for found in measure(model, arguments.model, requests, weights, own["rows"]):
                if "grammar" in found:
                    own["rows"].append(found)
                else:
                    own["file"] = found
                write_json(arguments.output, result)
        print(weights, own["file"], summary(own["rows"]), flush=True)


if __name__ == "__main__":
    main()
