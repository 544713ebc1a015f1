"""The published LLM-CXR model, in a stand-in of its layout at toy size: same logits, same codes, its own prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_model, build_tokenizer, load_script
from transformers import AddedToken

from llmcxr.cli import main
from llmcxr.formats.llm_cxr import DRAWING_INSTRUCTION, REPORT_INSTRUCTION
from llmcxr.foundation import devices
from llmcxr.inference.backend import Sampling
from llmcxr.inference.explanation import beliefs
from llmcxr.inference.llm_cxr import LlmCxr
from llmcxr.inference.outside import statistics
from llmcxr.tasks import cxr_to_report, cxr_vqa, report_to_cxr

taming = load_script("tests/image_tokens/test_taming.py")
K = 64
INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
MARKS = ("### End", "### Instruction:", "### Response:\n")


class Published:
    """What the authors' code makes of the same files."""

    def __init__(self, folder: Path) -> None:
        spaces = [AddedToken(" " * n, special=False, normalized=False) for n in (4, 3, 2)]
        self.tokenizer = build_tokenizer(*spaces, *[AddedToken(m, special=True, normalized=False) for m in MARKS])
        self.tokenizer.chat_template = None
        self.model = build_model("neox", len(self.tokenizer) + K).bfloat16()
        self.vqgan = taming.reference(taming.SMALL, K)
        self.folder, self.vqgan_file = folder / "llmcxr_mimic-cxr", taming.write(folder, self.vqgan, taming.SMALL)
        self._write()
        self.model = self.model.float()

    def _write(self) -> None:
        """As transformers 4.28 did: two shards of torch.save with buffers among the weights, and old names in the configuration."""
        self.tokenizer.save_pretrained(self.folder)
        names = {"rope_parameters", "dtype", "transformers_version"}
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in names}
        old = {
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.28.1",
        }
        (self.folder / "config.json").write_text(json.dumps(config | old))
        state = dict(self.model.state_dict())
        for layer in range(2):
            stem = f"gpt_neox.layers.{layer}.attention."
            state[stem + "bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
            state[stem + "masked_bias"] = torch.tensor(-1e9)
            state[stem + "rotary_emb.inv_freq"] = torch.ones(1)
        halves, place = (list(state)[::2], list(state)[1::2]), {}
        for n, half in enumerate(halves, 1):
            name = f"pytorch_model-0000{n}-of-00002.bin"
            torch.save({k: state[k] for k in half}, self.folder / name)
            place |= dict.fromkeys(half, name)
        index = {"metadata": {"total_size": 0}, "weight_map": place}
        (self.folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        (self.folder / "training_args.bin").write_bytes(b"never read")

    def prompt(self, instruction: str, text: str, codes: np.ndarray | None = None) -> list[int]:
        """The whole prompt as one text, the middle of `<image>` replaced by codes that are moved behind all tokens."""
        whole = f"{INTRO}\n\n### Instruction:\n{instruction}\n\nInput:\n{text}\n\n### Response:\n"
        ids = self.tokenizer(whole)["input_ids"]
        if codes is None:
            return ids
        left, middle, right = (self.tokenizer(t)["input_ids"] for t in ("<", "image", ">"))
        place = [*left, *middle, *right]
        [at] = [i for i in range(len(ids)) if ids[i : i + len(place)] == place]
        shifted = [int(code) + len(self.tokenizer) for code in codes]
        return [*ids[: at + len(left)], *shifted, *ids[at + len(left) + len(middle) :]]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Published:
    return Published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def ours(published, tmp_path_factory) -> LlmCxr:
    out = tmp_path_factory.mktemp("ours") / "model"
    assert main(["import", "llm-cxr", str(published.folder), str(published.vqgan_file), str(out)]) == 0
    return LlmCxr.from_pretrained(out, "cpu", "float32")


def test_logits_are_the_same(published, ours):
    ids = torch.randint(len(published.tokenizer) + K, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.asker.backend.model(ids).logits, published.model(ids).logits)
    assert ours.asker.vocabulary.first_id == len(published.tokenizer)


def test_codes_are_the_same(published, ours, monkeypatch):
    monkeypatch.setitem(devices._set, "cpu", dict.fromkeys(devices.SHAPES, torch.float32))
    images = taming.pictures(6, taming.SMALL)
    indices = published.vqgan.encode(images.expand(-1, 3, -1, -1))[2][2].reshape(6, -1)
    assert (ours.encode(list(images[:, 0].numpy())) == indices.numpy()).mean() > 0.999


def test_prompts_are_those_it_was_trained_with(published, ours):
    codes = np.arange(ours.info.grid**2, dtype=np.uint16) % K
    asked = {task: ours.info.asked(task) for task in ("cxr_to_report", "report_to_cxr")}
    turns = [
        cxr_to_report.TASK.prompt(codes, **asked["cxr_to_report"]),
        cxr_vqa.TASK.prompt(codes, "Is there a pleural effusion?"),
    ]
    assert ours.asker.prompts(turns) == [
        published.prompt(REPORT_INSTRUCTION, "<image>", codes),
        published.prompt("Is there a pleural effusion?", "<image>", codes),
    ]
    text = "The heart is normal in size. No pneumothorax."
    [drawing] = ours.asker.prompts([report_to_cxr.TASK.prompt(text, **asked["report_to_cxr"])], "image")
    assert drawing == published.prompt(DRAWING_INSTRUCTION, text) + published.tokenizer("<")["input_ids"]


def test_reports_and_drawings_are_its_own(published, ours):
    codes = np.arange(ours.info.grid**2, dtype=np.uint16) % K
    first, end = len(published.tokenizer), published.tokenizer("### End")["input_ids"][0]
    never = [*range(first, first + K), *(i for i in published.tokenizer.all_special_ids if i != end)]
    never += published.tokenizer.convert_tokens_to_ids(list(MARKS[1:]))
    prompt = torch.tensor([published.prompt(REPORT_INSTRUCTION, "<image>", codes)])
    found = published.model.generate(
        prompt, max_new_tokens=24, do_sample=False, suppress_tokens=never, eos_token_id=end
    )
    words = [i for i in found[0, prompt.shape[1] :].tolist() if i != end]
    assert ours.reports(codes[None], Sampling(max_new_tokens=24)) == [published.tokenizer.decode(words).strip()]
    text = "No pneumothorax."
    prompt = torch.tensor([published.prompt(DRAWING_INSTRUCTION, text) + published.tokenizer("<")["input_ids"]])
    rows = list(range(first, first + K))
    drawn = published.model.generate(
        prompt, max_new_tokens=len(codes), do_sample=False, prefix_allowed_tokens_fn=lambda batch, ids: rows
    )
    expected = drawn[0, prompt.shape[1] :].numpy() - first
    assert (ours.draw_codes([text], Sampling())[0] == expected).all()


def test_likelihoods_are_of_its_own_prompts(published, ours):
    """What explains an answer, and says whether an image is outside, asks as reports and drawings do."""
    codes = np.arange(ours.info.grid**2, dtype=np.uint16) % K
    [prompt] = ours.asker.prompts([report_to_cxr.TASK.prompt("", instruction=DRAWING_INSTRUCTION)], "image")
    assert prompt[-1] == published.tokenizer("<")["input_ids"][0]
    first = len(published.tokenizer)
    ids = torch.tensor([[*prompt, *(int(code) + first for code in codes)]])
    with torch.no_grad():
        logits = published.model(ids).logits[0, len(prompt) - 1 : -1, first : first + K]
    chances = logits.log_softmax(-1)[range(len(codes)), codes.astype(int)]
    pixels = np.zeros((1, ours.info.image_size, ours.info.image_size), dtype=np.float32)
    found = statistics(ours.asker, pixels, pixels, codes[None])
    np.testing.assert_allclose(found[0, 1], -chances.mean().item(), rtol=1e-4)
    text = "No pneumothorax."
    own = ours.asker.log_likelihoods([cxr_to_report.TASK.prompt(codes, instruction=REPORT_INSTRUCTION)], [text])
    assert beliefs(ours.asker, codes[None], [text])[0] == pytest.approx(own)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path(Payload.place),))


def test_what_does_not_belong_together_or_is_not_safe_is_refused(published, tmp_path, capfd):
    """One error each, with its reason, and no folder is left."""
    small = tmp_path / "vqgan"
    small.mkdir()
    other = taming.write(small, taming.reference(taming.SMALL, K // 2), taming.SMALL)
    out = str(tmp_path / "out")
    assert main(["import", "llm-cxr", str(published.folder), str(other), out]) == 2
    assert "rows" in capfd.readouterr().err
    assert main(["import", "llm-cxr", str(published.folder), out]) == 2
    assert "image tokenizer" in capfd.readouterr().err
    shard = published.folder / "pytorch_model-00002-of-00002.bin"
    whole = shard.read_bytes()
    try:
        Payload.place = str(tmp_path / "ran")
        torch.save({"embed_out.weight": Payload()}, shard)
        assert main(["import", "llm-cxr", str(published.folder), str(published.vqgan_file), out]) == 2
        assert "llmcxr: " in capfd.readouterr().err and not (tmp_path / "ran").exists()
        shard.unlink()
        assert main(["import", "llm-cxr", str(published.folder), str(published.vqgan_file), out]) == 2
        assert shard.name in capfd.readouterr().err
    finally:
        shard.write_bytes(whole)
    assert not Path(out).exists()
