"""The plan against what really happens: the tuned toy models, the trainer's own batches, and sums by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from conftest import build_model, build_tokenizer
from PIL import Image

from llmcxr import plan as planning
from llmcxr import speed
from llmcxr.cli import main
from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.foundation.settings import build_settings, load_settings
from llmcxr.instructions.rendering import RenderedExample
from llmcxr.instructions.templates import build_template
from llmcxr.pipeline import Run
from llmcxr.plan import LanguagePlan, Plan, PlanOptions, plan
from llmcxr.plan_text import plan_text
from llmcxr.recipe import Recipe
from llmcxr.recipes import find_recipe
from llmcxr.stages.tuning import task_items
from llmcxr.tuning.alignment import alignment_prompt
from llmcxr.tuning.cost import (
    Cost,
    Counts,
    Memory,
    ModelSize,
    build_tunable,
    cost_of,
    counts_of,
    device_memory,
    size_of,
)
from llmcxr.tuning.settings import LanguageSettings, TuningSettings
from llmcxr.tuning.trainer import Stage
from llmcxr.tuning.tunable import MasterAdamW, TunableModel
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

META, CPU = torch.device("meta"), torch.device("cpu")
K = 16
SIZE = ModelSize(
    parameters=0,
    trained=0,
    rows=50,
    image_rows=16,
    width=8,
    layers=4,
    weight_bytes=8000,
    gradient_bytes=600,
    step_gradient_bytes=1200,
    optimizer_bytes=3600,
    table_copies=3,
    number_bytes=2,
    logit_bytes=2,
)


def language_of(planned: Plan) -> LanguagePlan:
    assert planned.language is not None
    return planned.language


NOTHING = Counts(*[0] * len(Counts._fields))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("databricks/dolly-v2-3b", 2_775_086_080),  # pythia-2.8b's 2,775,208,960 with 24 rows fewer, twice
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B", 4_022_468_096),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name, published, toy_vocabulary):
    config, _ = planning.find_config(name)
    toy_vocabulary.first_id = config.vocab_size
    size = size_of(build_tunable(config, toy_vocabulary, TuningSettings(method="full", max_tokens=256), META))
    tables = 1 if config.tie_word_embeddings else 2
    assert size.parameters - tables * K * size.width == published
    assert size.trained == size.parameters + tables * K * size.width  # the image rows lie over the table


def test_the_stand_in_shape_is_used_only_where_nothing_better_is_there(tmp_path):
    build_model("neox", 340).config.save_pretrained(tmp_path)
    assert planning.find_config(str(tmp_path))[0].hidden_size == 32


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("kind", "tied", "dtype"),
    [
        ("llama", True, torch.bfloat16),
        ("llama", True, torch.float32),
        ("neox", False, torch.bfloat16),
        ("gpt2", True, torch.float32),
        ("qwen3", False, torch.bfloat16),
    ],
)
def test_counts_are_those_of_the_real_model_and_optimizer(kind, tied, dtype, method, toy_vocabulary):
    settings = TuningSettings(method=method, lora_rank=3, max_tokens=256)
    model = build_model(kind, 340, tied).to(dtype)
    size = size_of(build_tunable(model.config, toy_vocabulary, settings, META, dtype))
    real = TunableModel(model, toy_vocabulary, torch.zeros(K, 32), settings)
    trainable = list(real.trainable().values())
    assert size.trained == sum(p.numel() for p in trainable)
    assert size.weight_bytes == sum(p.nbytes for p in {id(p): p for p in real.model.parameters()}.values())
    optimizer = MasterAdamW(real)
    ids = torch.tensor([[1, 2, toy_vocabulary.first_id, toy_vocabulary.first_id + 3]])
    real.model(input_ids=ids, use_cache=False).logits.float().square().mean().backward()
    assert size.gradient_bytes == sum(cast(torch.Tensor, p.grad).nbytes for p in trainable)
    optimizer.step({"body": 1e-3, "rows": 1e-3}, 1.0)
    masters = [master for p, master in optimizer._pairs if master is not p]
    moments = [v for state in optimizer.optimizer.state.values() for k, v in state.items() if k != "step"]
    assert size.optimizer_bytes == sum(t.nbytes for t in masters + moments)
    assert size.table_copies == (3 if method == "full" else 2)
    assert size.logit_bytes == size.number_bytes == dtype.itemsize
    assert size.step_gradient_bytes == size.gradient_bytes + 4 * size.trained  # a toy: all at once
    assert size.parameters == sum(p.numel() for p in {id(p): p for p in real.merge().parameters()}.values())


def test_operations_by_hand(toy_vocabulary):
    """A matrix costs 2 operations a weight and token forwards, 2 for its input's gradient and 2 for its own where it is trained;
    causal attention 2 T^2 a unit of query width forwards, and twice that backwards."""
    config = build_model("llama", 340, width=64).config  # 4 heads, 2 of keys and values, inner width 96, 2 layers
    body = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96)
    adapters = 2 * 5 * (64 + 64 + 64 + 32 + 64 + 32 + 64 + 64 + 2 * (64 + 96) + 96 + 64)
    V, first, pair = len(toy_vocabulary.tokenizer), toy_vocabulary.first_id, 2 * 64

    def cost(**settings: Any) -> Cost:
        own = TuningSettings(max_tokens=256, lora_rank=5, **settings)
        return cost_of(build_tunable(config, toy_vocabulary, own, META), config, own)

    full = cost(method="full")
    assert full.step == (6 * body, 6 * pair) and full.base == (0, 0)
    assert full.head[:2] == (6 * 64 * V, 6 * 64 * K)
    lora = cost(method="lora", language=LanguageSettings(loss="base_model"))
    assert lora.step == (4 * (body + adapters) + 2 * adapters, 6 * pair) and lora.base == (2 * body, 2 * pair)
    frozen = V - K  # text rows of the head: no gradient of their own
    assert lora.head == (4 * 64 * frozen + 6 * 64 * K, 6 * 64 * K, 2 * 64 * first)
    assert full.operations(NOTHING._replace(tokens=14, squares=116)) == 14 * 6 * body + 116 * 6 * pair
    heads = NOTHING._replace(outside=5, inside=4)
    assert full.operations(heads) == 6 * 64 * (5 * V + 4 * K)
    anchored = NOTHING._replace(language_tokens=4, language_squares=16, anchored=3)
    assert lora.operations(anchored) == 4 * 2 * body + 16 * 2 * pair + 3 * 2 * 64 * first


def test_four_bits_by_hand(toy_vocabulary):
    config = build_model("llama", 340, width=64).config
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
    adapters = 5 * (64 + 64 + 64 + 32 + 64 + 32 + 64 + 64 + 2 * (64 + 96) + 96 + 64)
    size = size_of(
        build_tunable(config, toy_vocabulary, TuningSettings(lora_rank=5, max_tokens=256), META), quantised=True
    )
    assert (size.rows, size.image_rows) == (len(toy_vocabulary.tokenizer), K)
    tables, norms, whole = 2 * size.rows * 64 * 2, 5 * 64 * 2, 2 * 64 * 96  # 96 inputs cannot be packed
    four_bits = (2 * layer - whole) * (0.5 + 1 / 64 + 4 / (64 * 256))
    assert size.weight_bytes == round(four_bits + 2 * whole + 2 * adapters * 2 + tables + norms + 2 * K * 64 * 4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_four_bits_weigh_what_bitsandbytes_keeps(kind, toy_vocabulary):
    pytest.importorskip("bitsandbytes")
    settings = TuningSettings(method="qlora", lora_rank=3, max_tokens=256)
    model = build_model(kind, 340, True, width=256).to(torch.bfloat16)
    planned = size_of(build_tunable(model.config, toy_vocabulary, settings, META), quantised=True)
    real = TunableModel(model, toy_vocabulary, torch.zeros(K, 256), settings)
    states = [p.quant_state for p in real.model.parameters() if hasattr(p, "quant_state")]
    scales = sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in states)
    weights = sum(p.nbytes for p in {id(p): p for p in real.model.parameters()}.values())
    assert len(states) >= 8 and planned.weight_bytes == pytest.approx(weights + scales, rel=1e-3)
    assert planned.trained == sum(p.numel() for p in real.trainable().values())


def test_memory_by_hand():
    largest = NOTHING._replace(inside=30, outside=7)
    memory = device_memory(SIZE, 100, 64.0, largest)
    activations = 100 * 64 + 2 * (7 * 50 + 30 * 16) + 6 * 50 * 8
    assert memory == Memory(8000, 3600, 600, 1200, activations)
    assert memory.peak == 8000 + 3600 + 600 + activations
    assert (
        dataclasses.replace(memory, activations=500).peak == 8000 + 3600 + 1200
    )  # then the optimiser's step is larger
    anchored = device_memory(SIZE, 100, 64.0, largest._replace(anchored=3))
    assert anchored.activations == activations + 3 * 50 * (8 - 2)
    wide = device_memory(dataclasses.replace(SIZE, number_bytes=4, logit_bytes=4), 100, 64.0, largest)
    assert wide.activations == 100 * 64 + 4 * (7 * 50 + 30 * 16) + 12 * 50 * 8
    sharded = device_memory(SIZE, 100, 64.0, largest, shards=4)
    assert sharded.weights == 8000 // 4 + 2 * 8000 // 4 and sharded.optimizer == 900 and sharded.gradients == 150
    assert sharded.activations == activations


def test_counts_of_a_batch_by_hand(toy_vocabulary):
    """Three codes that are drawn, three that are read, and an answer of two tokens in an example of language."""
    a, b, c = (toy_vocabulary.first_id + k for k in range(3))
    drawn = RenderedExample(np.array([1, 2, a, b, c, 3]), np.array([0, 0, 1, 1, 1, 1], bool), "report_to_cxr", "x")
    read = RenderedExample(np.array([1, a, b, c, 2, 3]), np.array([0, 0, 0, 0, 0, 1], bool), "cxr_to_report", "x")
    said = RenderedExample(np.array([1, 2, 3, 3]), np.array([0, 0, 1, 1], bool), "language")
    settings = TuningSettings(language=LanguageSettings(loss="base_model"), read_image_weight=0.1)
    counts = counts_of([drawn, read, said], toy_vocabulary, settings)
    assert counts == Counts(3, 16, 36 + 36 + 16, 18, 6, 2 + 2, 2 + 1 + 2, 4, 16, 2) and counts.learned == 9
    plain = counts_of([drawn, read, said], toy_vocabulary, TuningSettings(image_softmax="all_rows"))
    assert (plain.inside, plain.outside, plain.language_tokens, plain.anchored) == (0, 4 + 1 + 2, 0, 0)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "neox", "gpt2"])
def test_activations_are_what_autograd_keeps(kind, method, toy_vocabulary):
    """One and two layers on 32 tokens foretell seven layers on 3 x 64."""
    settings = TuningSettings(method=method, lora_rank=3, max_tokens=256)
    config = build_model(kind, 340).config
    config = _deeper(config)
    foretold = cost_of(build_tunable(config, toy_vocabulary, settings, META), config, settings).kept
    stock = build_tunable(_deeper(config), toy_vocabulary, settings, META).model.to_empty(device="cpu")
    assert foretold == pytest.approx(_kept(stock), rel=0.03)
    on_cpu = build_tunable(_deeper(config), toy_vocabulary, settings, CPU).model
    assert _kept(on_cpu) <= foretold * 1.03, "the kernels for CPUs keep no more"


def _kept(model: Any) -> float:
    """Bytes a token that autograd keeps."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.base_model(input_ids=torch.zeros(3, 64, dtype=torch.long), use_cache=False)
    return sum(t.untyped_storage().nbytes() for t in kept.values()) / (3 * 64)


def _deeper(config: Any) -> Any:
    config.num_hidden_layers = 7
    return config


# --- tokens of a run whose data are on disk


@pytest.fixture
def recipe_path(tmp_path) -> Path:
    """A table of 20 images, and an LLM folder with a configuration and tokenizer only: there are no weights to load."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["file,split,impression,effusion"]
    for i in range(20):
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(folder / f"{i}.png")
        text = f"The heart is normal. {'No effusion. ' * (120 if i == 3 else i % 5)}"  # of one, not all sentences fit
        lines.append(f"{i}.png,{'train' if i < 16 else 'validate'},{text},{i % 2}")
    (folder / "t.csv").write_text("\n".join(lines))
    build_model("llama", 340, True).config.save_pretrained(tmp_path / "llm")
    build_tokenizer().save_pretrained(tmp_path / "llm")
    table = {
        "path": str(folder / "t.csv"),
        "columns": {"image": "file", "split": "split", "impression": "impression"},
        "label_columns": ["effusion"],
    }
    stage = {"conversations": {"presence": 1}, "cohort": {"sections": "impression"}}
    recipe = {
        "name": "toy",
        "runs": str(tmp_path / "runs"),
        "device": "cpu",
        "precision": "bfloat16",  # what auto finds depends on what else the machine does
        "llm": str(tmp_path / "llm"),
        "source": {"kind": "table", "table": table},
        "image_tokenizer": {
            "architecture": {"image_size": 32, "channels": [32, 32, 32, 32], "codebook_size": K, "code_dim": 8}
        },
        "tuning": {
            "template": "chat",
            "system_prompt": "",
            "lora_rank": 2,
            "max_tokens": 300,
            "tokens_per_batch": 500,
            "batches_per_step": 2,
            "stages": [
                {"name": "one", "examples": 300, **stage},
                {"name": "two", "examples": 60, "mixture": {"cxr_vqa": 1}, **stage},
            ],
        },
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "r.yaml"


@pytest.mark.parametrize("loss", ["response", "sequence"])
def test_tokens_and_steps_are_the_trainers(loss, recipe_path, tmp_path):
    recipe = load_settings(Recipe, recipe_path, [f"tuning.loss={loss}"])
    planned = plan(recipe).stages[0]
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    model = build_model("llama", 340, True)
    tunable = TunableModel(model, vocabulary, torch.zeros(K, 32), recipe.tuning)
    stage = recipe.tuning.stages[0]
    context = Run(recipe).context
    planning.find_data(context, False, PlanOptions(), [])
    items, _ = task_items(context, stage, "train")
    template = build_template("chat", vocabulary.tokenizer, "")
    trainer = Stage(tunable, template, recipe.tuning, stage, items, {}, tmp_path / "one", Processes("cpu"), 0)
    batches = [batch for _, _, batch in trainer.feed.batches(0, 0)]
    assert planned.counts.tokens == sum(b.tokens for b in batches)
    assert planned.counts.padded == sum(b.ids.numel() for b in batches)
    assert planned.counts.learned == sum(int(b.supervised.sum()) for b in batches)
    first = vocabulary.first_id
    assert planned.counts.image == sum(int(((b.ids >= first) & (b.ids < first + K)).sum()) for b in batches)
    assert planned.steps == -(-len(batches) // 2)
    for count, what in ((planned.cut, "cut"), (planned.left_out, "left out")):
        assert count == sum(n for key, n in trainer.feed.too_long.items() if key.endswith(what)) > 0
    assert planned.tasks == trainer.mixture.counts() and sum(planned.tasks.values()) == 300
    assert planned.epochs["cxr_to_report"] == planned.tasks["cxr_to_report"] / 16


def test_the_precision_is_that_of_the_run(recipe_path, monkeypatch):
    """The recipe's, or the one that is faster here; the rate of another device is one in bfloat16."""
    plans = {p: plan(load_settings(Recipe, recipe_path, [f"precision={p}"])) for p in ("float32", "bfloat16")}
    wide, narrow = (language_of(p).memory[""] for p in plans.values())
    assert "(float32; moments in float32; " in plan_text(plans["float32"])
    assert "(bfloat16; masters and moments in float32; " in plan_text(plans["bfloat16"])
    assert (
        wide.optimizer < narrow.optimizer and narrow.weights < wide.weights < 2 * narrow.weights + 5000
    )  # rows stay wide
    assert 1.5 < wide.activations / narrow.activations < 2.1 and plans["float32"].stages == plans["bfloat16"].stages
    monkeypatch.setattr(planning, "asked_precision", lambda setting, device: {"training": torch.float32})
    recipe = load_settings(Recipe, recipe_path, ["precision=auto"])
    assert language_of(plan(recipe)).memory == language_of(plans["float32"]).memory
    elsewhere = plan(recipe, PlanOptions(tflops=100.0))
    assert (
        language_of(elsewhere).memory == language_of(plans["bfloat16"]).memory
        and "--tflops trains in bfloat16" in elsewhere.notes[-1]
    )


def test_alignment_is_planned(recipe_path, capsys, monkeypatch):
    """Prompts of one length, through one of the two layers."""
    overrides = ["tuning.alignment={steps: 50}"]
    monkeypatch.setattr(planning, "LAYERS", 1)
    monkeypatch.setattr(planning, "BATCH", 20)
    recipe = load_settings(Recipe, recipe_path, overrides)
    without = plan(load_settings(Recipe, recipe_path), PlanOptions(tflops=1e-6, utilisation=1.0, devices=2))
    planned = plan(recipe, PlanOptions(tflops=1e-6, utilisation=1.0, devices=2))
    first, *stages = planned.stages
    assert (
        stages == without.stages
        and planned.disk["weights of the stages"] == language_of(planned).size.gradient_bytes * 3
    )
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    template = build_template("chat", vocabulary.tokenizer, "")
    T = len(alignment_prompt(np.zeros(16, dtype=np.uint16), template, vocabulary))
    assert (first.name, first.steps, first.counts.examples) == ("alignment", 50, 50 * 16)  # of 16 training images
    assert (first.counts.tokens, first.counts.image, first.counts.learned) == (800 * T, 800 * 16, 0)
    config, _ = planning.find_config(recipe.llm)
    cost = cost_of(build_tunable(config, vocabulary, recipe.tuning, META), config, recipe.tuning)
    flops = 800 * (T * cost.step[0] + T**2 * cost.step[1]) / 2
    assert first.flops == pytest.approx(flops) and first.hours == pytest.approx(flops / 1e6 / 2 / 3600)
    assert language_of(planned).memory == language_of(without).memory, "a step of alignment is smaller"
    monkeypatch.setattr(planning, "LAYERS", 9)
    larger = load_settings(Recipe, recipe_path, ["tuning.alignment={steps: 1}", "tuning.tokens_per_batch=320"])
    usual = load_settings(Recipe, recipe_path)
    assert language_of(plan(larger)).memory[""].activations > language_of(plan(usual)).memory[""].activations
    monkeypatch.setattr(planning, "LAYERS", 1)
    assert main(["plan", str(recipe_path), *overrides]) == 0
    assert "alignment: through 50% of the layers" in capsys.readouterr().out


def test_a_sample_foretells_the_whole(recipe_path):
    recipe = load_settings(Recipe, recipe_path, ["tuning.stages=[{examples: 6000, cohort: {sections: impression}}]"])
    whole, sampled = (plan(recipe, sample=n).stages[0] for n in (6000, 1024))
    for name in ("tokens", "image", "learned", "padded"):
        assert getattr(sampled.counts, name) == pytest.approx(getattr(whole.counts, name), rel=0.03), name
    assert (sampled.steps, sampled.flops) == pytest.approx((whole.steps, whole.flops), rel=0.03)


def test_hours(recipe_path):
    recipe = load_settings(Recipe, recipe_path)
    one = plan(recipe, PlanOptions(rate=100.0))
    assert one.stages[0].hours == pytest.approx(one.stages[0].counts.tokens / 100 / 3600)
    two = plan(recipe, PlanOptions(rate=100.0, devices=2))
    assert (
        two.stages[0].hours == pytest.approx(one.stages[0].hours / 2) and "sharded (FSDP2)" in language_of(two).memory
    )
    assert two.stages[0].steps == one.stages[0].steps, "the batches of a step are shared"
    packed = load_settings(Recipe, recipe_path, ["tuning.method=qlora"])
    assert list(language_of(plan(packed, PlanOptions(devices=2))).memory) == ["each holds all"]
    with pytest.raises(UserError, match="tuning.batches_per_step=3"):
        plan(recipe, PlanOptions(devices=3))
    by_rate = plan(recipe, PlanOptions(tflops=2.0, utilisation=0.5))
    assert by_rate.stages[0].hours == pytest.approx(by_rate.stages[0].flops / 1e12 / 3600)
    assert language_of(one).paper[0] == pytest.approx(377_000 * 5 / 0.8 * one.stages[0].counts.tokens / 300)
    assert plan(recipe).stages[0].hours is None


def test_the_command_line(recipe_path, capsys):
    assert main(["plan", str(recipe_path), "--rate", "50", "seed=3"]) == 0
    text = capsys.readouterr().out
    for words in ("Plan of toy, on 1 device", "one", "two", "as given: 50 tokens/s", "377,000 images x 5 epochs"):
        assert words in text
    assert "Assumptions" not in text, "everything is on disk"
    assert main(["plan", str(recipe_path)]) == 0
    assert "--rate TOKENS_PER_SECOND, --measure, or --tflops" in capsys.readouterr().out
    empty = recipe_path.parent / "data"
    assert main(["plan", str(recipe_path), f"llm={empty}"]) == 2
    assert f"'{empty}' could not be loaded" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", str(recipe_path), "--rate", "0"])


def test_measured_here(recipe_path, capsys, monkeypatch):
    for name in ("tuning_rate", "image_stages"):
        real = getattr(speed, name)
        monkeypatch.setattr(speed, name, lambda *arguments, real=real: real(*arguments, seconds=0.2))
    assert main(["plan", str(recipe_path), "--measure", "tuning.language.loss=base_model"]) == 0
    text = capsys.readouterr().out
    assert "measured here (cpu): " in text and "the run, without making or reading the radiographs: " in text
    others = text.split("Other time\n")[1].split("\n  the run")[0].splitlines()
    stages = ("clinical_features", "image_tokenizer", "codes", "judge", "evaluation", "measuring while tuning, at most")
    assert [line.startswith(f"  {name} ") for name, line in zip(stages, others, strict=True)] == [True] * 6


def test_a_plan_until_a_stage_has_what_leads_to_it(recipe_path, capsys, monkeypatch):
    """The recipe of an image tokenizer alone was planned by its tuning, which nobody runs."""
    recipe = load_settings(Recipe, recipe_path)
    whole, images = (plan(recipe, PlanOptions(tflops=1.0, until=until)) for until in (None, "image_tokenizer"))
    parts = {name: hours for name, hours in whole.others.items() if name.startswith("image_tokenizer")}
    assert images.others == parts and parts and not images.stages and images.language is None
    assert set(images.disk) == {"pixels"} < set(whole.disk)
    one = plan(recipe, PlanOptions(tflops=1.0, until="one"))
    assert one.stages == whole.stages[:1] and "model" not in one.disk and "codes" in one.others
    assert main(["plan", str(recipe_path), "--until", "image_tokenizer", "--rate", "5", "llm=nowhere/none"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Plan of toy, until image_tokenizer, on 1 device") and "for the time: --measure, or" in text
    assert not any(word in text for word in ("Language model", "Tuning", "Memory", "The paper's stage 1", "--rate"))
    aligned = load_settings(Recipe, recipe_path, ["tuning.alignment.steps=2"])
    assert plan(aligned, PlanOptions(until="alignment")).notes == ["Alignment is planned with tuning: --until one."]
    assert main(["plan", str(recipe_path), "--until", "pictures"]) == 2
    assert "no stage is called 'pictures'. Stages: studies, " in capsys.readouterr().err
    real = speed.image_stages
    monkeypatch.setattr(speed, "image_stages", lambda *arguments: real(*arguments, seconds=0.2))
    measured = plan(recipe, PlanOptions(measure=True, until="codes"))
    assert list(measured.others) == ["clinical_features", "image_tokenizer", "codes"]
    assert "\nTime\n" in plan_text(measured) and "speed measured here (cpu)\n" in plan_text(measured)


def test_no_more_is_measured_than_the_test_patients_have(recipe_path):
    """With 800 questions reckoned for six test images the evaluation was planned ten times as long as it took."""
    table = recipe_path.parent / "data" / "t.csv"
    rows = table.read_text().replace("validate", "test").splitlines()
    rows[-1] = rows[-1].split(",")[0] + ",test,,1"  # the only test image without a report, which takes no part
    table.write_text("\n".join(rows))
    context = Run(load_settings(Recipe, recipe_path, [])).context
    planning.find_data(context, False, PlanOptions(), [])
    asked = planning.measured_cases(context, True)
    assert asked == {
        "reconstructions": 3,
        "reports": 3,
        "questions": asked["questions"],
        "probabilities": 3,
        "drawings": 3,
    }
    assert 0 < asked["questions"] < 20
    assert planning.measured_cases(context, False) == context.recipe.evaluation.counts


def test_the_real_step_is_timed_in_full_tuning_too(toy_vocabulary):
    settings = TuningSettings(method="full", max_tokens=256, tokens_per_batch=256)
    tunable = build_tunable(build_model("llama", 340).config, toy_vocabulary, settings, CPU)
    example = RenderedExample(np.arange(100), np.ones(100, bool), "cxr_vqa")
    assert speed.tuning_rate(tunable, settings, [example], seconds=0.05) > 0
    assert (speed.peak_bytes(CPU) or 2**30) > 2**20


def test_assumptions_are_said(recipe_path, capsys):
    overrides = ["source.table.path=no.csv", "tuning.language.instructions=no.jsonl"]
    assert main(["plan", str(recipe_path), *overrides, "--words", "10", "40", "--images", "1000"]) == 0
    text = capsys.readouterr().out
    assert "The data are not there: assumed 1,000 images" in text and "no.jsonl is not there" in text
    assert "assumed 10 words of findings and 40 of impression" in text
    recipe = build_settings(Recipe, yaml.safe_load(recipe_path.read_text()))
    recipe = dataclasses.replace(recipe, source=build_settings(type(recipe.source), {"kind": "phantom"}))
    notes: list[str] = []
    context = Run(recipe).context
    images, real = planning.find_data(context, False, PlanOptions(), notes)
    assert (
        images == 2600 and not real and len(context.studies[0].findings_text.split()) == 32 and "32 words" in notes[0]
    )


def test_gradient_checkpointing_keeps_what_goes_into_layers(toy_vocabulary):
    config = _deeper(build_model("llama", 340).config)
    kept = []
    for checkpointing in (False, True):
        settings = TuningSettings(lora_rank=3, max_tokens=256, gradient_checkpointing=checkpointing)
        kept.append(cost_of(build_tunable(config, toy_vocabulary, settings, META), config, settings).kept)
    assert kept[1] < 0.3 * kept[0]


def test_planning_leaves_nothing(recipe_path, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    plan(load_settings(Recipe, recipe_path))
    assert sorted(tmp_path.rglob("*")) == before


def test_the_run_that_it_starts_from_need_not_be_there(recipe_path):
    started = plan(load_settings(Recipe, recipe_path, ["start=runs/not-yet"]))
    assert started.stages == plan(load_settings(Recipe, recipe_path)).stages


def test_operations_of_the_image_tokenizer_by_hand():
    """The discriminator of vqgan on 32 px, from the sizes of its layers; the rest by what must hold."""
    changes = ["image_tokenizer.architecture.image_size=32", "image_tokenizer.architecture.channels=[32,64]"]
    recipe = load_settings(Recipe, find_recipe("vqgan-paper"), changes)
    s = recipe.image_tokenizer
    layers = [(1, 64, 16), (64, 128, 8), (128, 256, 4), (256, 512, 3), (512, 1, 2)]  # inputs, outputs, side
    first, *_ = each = [2 * 16 * i * o * side**2 for i, o, side in layers]
    # the generator's pass, and back to the pixels; two images forward, and back to the weights and all inputs but the pixels
    passes = 2 * sum(each) + 2 * sum(each) + 2 * (2 * sum(each) - first)
    found = speed.image_operations(recipe, 1000)
    images = s.steps * s.batch_size
    assert found["image_tokenizer, discriminator"] == pytest.approx(passes * images * (1 - s.adversarial_start))
    # LPIPS: VGG-16's 2 x 15.35 G operations at 224 px fall with the area; forward twice, and back to the pixels
    assert found["image_tokenizer, LPIPS"] == pytest.approx(3 * 2 * 15.3466e9 * (32 / 224) ** 2 * images, rel=1e-3)
    given = dataclasses.replace(s, pretrained="theirs")
    assert set(speed.image_operations(dataclasses.replace(recipe, image_tokenizer=given), 1000)) == {"codes"}
    hours = planning._image_hours(recipe, 1000, lambda tokens, flops: flops / 1e15)
    assert hours == pytest.approx({name: n / 1e15 for name, n in found.items()})
    soon = dataclasses.replace(recipe, image_tokenizer=dataclasses.replace(s, minutes=30.0))
    ended = planning._image_hours(soon, 1000, lambda tokens, flops: flops / 1e15)
    assert ended.pop("codes") == hours.pop("codes") and sum(ended.values()) == pytest.approx(0.5)
    more = speed.image_operations(recipe, 3000)
    assert more.pop("codes") == 3 * found.pop("codes") and more == found


def test_pieces_of_a_step_go_forward_once_more():
    """And through the decoder again where the adversary is weighed (`images_at_once`)."""
    changes = ["image_tokenizer.architecture.image_size=32", "image_tokenizer.architecture.channels=[32,64]"]
    recipe, part = load_settings(Recipe, find_recipe("vqgan-paper"), changes), "image_tokenizer, encoder and decoder"
    whole = speed.image_operations(recipe, 1)
    encoder = whole["codes"]

    def in_pieces(**change: object) -> Recipe:
        own = dataclasses.replace(recipe.image_tokenizer, images_at_once=4, **change)
        return dataclasses.replace(recipe, image_tokenizer=own)

    def more(**change: object) -> float:
        """What they take beside the whole, an image."""
        s, found = recipe.image_tokenizer, speed.image_operations(in_pieces(**change), 1)
        return (found[part] - whole[part]) / (s.steps * s.batch_size)

    plain, late, all_along = more(adversarial_weight=0.0), more(), more(adversarial_start=0.0)
    decoder = all_along - plain
    assert decoder > encoder > 0 and plain == pytest.approx(encoder + decoder)
    assert late == pytest.approx(encoder + 1.5 * decoder)
    # 16 images are 4 a device, or 6.
    flops = [planning._image_hours(in_pieces(), 1, lambda tokens, flops: flops, devices) for devices in (4, 3)]
    assert flops[0] == whole and flops[1][part] > whole[part]
