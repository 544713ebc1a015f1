"""A model as a folder for any program that loads Hugging Face models (transformers, vLLM, TGI), with a card that says how to ask it.

The language model and tokenizer are stock already; what is added is what nobody can guess: the exact prompts, which tokens are
images, and an example with the tokens that it should give.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from llmcxr.foundation.artifacts import atomic_path, read_json, write_json
from llmcxr.inference.backend import GREEDY, Request
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.instructions.rendering import response_end
from llmcxr.model.sums import SUMS, write_sums
from llmcxr.tasks import cxr_vqa, language
from llmcxr.vocabulary.language_model import load_config

EXAMPLE = "example.json"
_REPORT, _QUESTION, _MESSAGE = (
    "Large right pleural effusion.",
    "Is there a pleural effusion?",
    "What is a pneumothorax?",
)
_WORDS = 24  # tokens of the example's text


def export_hf(model: LlmCxr, folder: Path, output: Path) -> None:
    """Write the model in `folder`, which `model` is (float32 gives the example's tokens that others get, too), as folder `output`.

    Image tokenizer, judge and llmcxr.json go with it, so that it is a model folder of ours as well.
    """
    asker, info = model.asker, model.info
    vocabulary = asker.vocabulary
    end = response_end(asker.template, vocabulary)[-1]
    rows = load_config(str(folder.resolve())).vocab_size
    [drawing] = asker.prompts([asker.drawing(_REPORT)], "image")
    [drawn] = model.asker.backend.generate([Request(drawing, "image", GREEDY)])
    assert drawn.codes is not None
    turns = {
        "a report": asker.report(drawn.codes),
        "an answer": cxr_vqa.TASK.prompt(drawn.codes, _QUESTION),
        "plain chat": language.TASK.prompt([{"role": "user", "content": _MESSAGE}]),
    }
    prompts = {"a drawing": drawing} | dict(zip(turns, asker.prompts(list(turns.values())), strict=True))
    written = [token for _, token in asker.backend.stream([Request(prompts["a report"], "text", GREEDY)])][:_WORDS]
    example = {
        "image": {"first_token": vocabulary.first_id, "tokens": vocabulary.size, "length": info.grid**2},
        "end_token": end,
        "never_in_text": [i for i in vocabulary.never_in_text(rows, end) if not vocabulary.is_image(i)],
        "draw": {"prompt": list(drawing), "tokens": vocabulary.encode_codes(drawn.codes)},
        "report": {"prompt": list(prompts["a report"]), "tokens": written},
    }
    with atomic_path(output) as temporary:
        shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns(SUMS, "README.md", ".*"))
        write_json(temporary / EXAMPLE, example)
        generation = temporary / "generation_config.json"
        stock = read_json(generation) if generation.exists() else {}
        write_json(generation, stock | {"eos_token_id": end})
        shown = {what: _shown(model, ids) for what, ids in prompts.items()}
        (temporary / "README.md").write_text(_card(output.name, model, shown, len(written)), encoding="utf-8")
        write_sums(temporary)


def _shown(model: LlmCxr, ids: Sequence[int]) -> str:
    """A prompt for people: its text, control tokens included, with one mark for an image."""
    vocabulary, parts = model.asker.vocabulary, list[str]()
    text: list[int] = []
    for i in [*ids, None]:
        if i is not None and not vocabulary.is_image(i):
            text.append(i)
            continue
        if text:
            parts.append(str(vocabulary.tokenizer.decode(text)))
            text = []
        if i is not None and (not parts or parts[-1] != "[IMAGE]"):
            parts.append("[IMAGE]")
    return "".join(parts)


def _card(name: str, model: LlmCxr, prompts: dict[str, str], words: int) -> str:
    info, vocabulary = model.info, model.asker.vocabulary
    metadata = ModelCardData(
        language="en",
        license="other",
        license_name="research-only",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["medical", "radiology", "chest-x-ray", "research-only", "llmcxr"],
    )
    return str(
        ModelCard.from_template(
            metadata,
            template_path=str(Path(__file__).with_name("hf_card.md.j2")),
            name=name,
            info=info,
            first=vocabulary.first_id,
            last=vocabulary.first_id + vocabulary.size - 1,
            prompts=prompts,
            example=EXAMPLE,
            words=words,
        )
    )
