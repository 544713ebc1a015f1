"""Speed and memory of our tuning loop against the paper's way, in one run on one machine.

The paper's way: Hugging Face `Trainer`, two examples a device padded to the longest, logits of the whole vocabulary at
every position, all weights tuned. Ours: `llmcxr.tuning` as it is. Both see the same model, the same rendered examples,
the same precision and the same AdamW. Every measurement runs in a fresh process. `benchmarks/README.md` says what is counted.

Shapes: T tokens of an example, d width, V rows of the table, K image rows, P matrix weights of the body.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

METHODS = {
    "trainer": "Trainer, batch 2, full logits, full tuning; bfloat16 weights, float32 masters (as DeepSpeed)",
    "trainer-autocast": "the same; float32 weights under bfloat16 autocast (bf16=True)",
    "full": "llmcxr, full tuning; bfloat16 weights, float32 masters",
    "lora": "llmcxr, LoRA on all linear layers; bfloat16 weights, float32 masters",
}
SHAPES: dict[str, dict[str, int]] = {  # GPT-NeoX with random weights; room for the K image rows is added
    "dolly-v2-3b": {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 10240, "vocab_size": 50280},
    "toy": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256, "vocab_size": 50280},
}  # fmt: skip
K, GRID = 1024, 16
RATE, BETAS = 1e-5, (0.9, 0.95)  # of every method; those of `MasterAdamW`


@dataclass(frozen=True)
class Plan:
    """What every measurement shares."""

    model: str  # an asset, a folder or a hub id
    shape: str  # of `SHAPES`; "" takes `model`
    device: str
    examples: int  # of the whole run
    examples_per_step: int  # the paper: 8 devices of 2
    tokens_per_batch: int  # ours: padded tokens at once
    lora_rank: int
    image_softmax: str


# ---------------------------------------------------------------------------------------------------- model, examples


@functools.cache
def load_vocabulary() -> Any:
    """The text tokenizer of the embedded model with K image tokens."""
    from llmcxr.vocabulary.image_vocabulary import ImageVocabulary
    from llmcxr.vocabulary.language_model import load_text_tokenizer

    return ImageVocabulary.grow(load_text_tokenizer("smollm2-135m-instruct"), K)


def load_model(plan: Plan, dtype: Any) -> Any:
    """The base model, not grown yet."""
    import torch
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    from llmcxr.vocabulary.language_model import load_language_model

    if not plan.shape:
        return load_language_model(plan.model, dtype)
    shape = SHAPES[plan.shape] | {"vocab_size": SHAPES[plan.shape]["vocab_size"] + K}
    config = GPTNeoXConfig(**shape, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    torch.manual_seed(0)
    with torch.device(plan.device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def image_rows(model: Any) -> Any:
    """Starts of the K image rows."""
    from llmcxr.vocabulary.growing import random_rows, table_of

    return random_rows(table_of(model).detach().cpu(), K, seed=0)


@functools.cache
def task_items() -> dict[Any, Any]:
    """Items of the four tasks: reports of Indiana University with their tags' findings, and synthetic codes [256]."""
    from llmcxr.foundation.assets import fetch
    from llmcxr.foundation.randomness import stream
    from llmcxr.labelling.registry import build_labeller
    from llmcxr.sources.phantom.reports import read_reports
    from llmcxr.sources.phantom.source import usable_reports
    from llmcxr.studies.report_sections import report_text
    from llmcxr.studies.study import Study
    from llmcxr.synthesis.gather import MEASURED, gather
    from llmcxr.tasks.cxr_to_report import CxrToReportItems
    from llmcxr.tasks.cxr_vqa import CxrVqaItems
    from llmcxr.tasks.findings_first import ImageReport
    from llmcxr.tasks.language import SHIPPED, LanguageItems, load_instructions
    from llmcxr.tasks.report_to_cxr import ReportToCxrItems
    from llmcxr.tuning.settings import StageSettings

    usable, _ = usable_reports(read_reports(fetch("indiana-reports") / "NLMCXR_reports.tgz"))
    names = {f.name for r in usable for f in r.findings}
    studies = [
        Study(r.uid, r.uid, r.uid, "", "train", findings_text=r.findings_text, impression_text=r.impression_text,
              labels={n: int(n in {f.name for f in r.findings}) for n in sorted(names)}, truth=r.findings)
        for r in usable
    ]  # fmt: skip
    codes = {s.image_id: stream("codes", s.image_id).integers(0, K, GRID * GRID).astype("uint16") for s in studies}
    pairs = [
        ImageReport(s.image_id, codes[s.image_id], text)
        for s in studies
        if (text := report_text(s, "findings_and_impression"))
    ]
    questions = list(gather(studies, MEASURED, build_labeller("rules"), 0))
    return {
        "language": LanguageItems(load_instructions(SHIPPED)),
        "report_to_cxr": ReportToCxrItems(pairs),
        "cxr_to_report": CxrToReportItems(pairs),
        "cxr_vqa": CxrVqaItems(questions, codes, 4, StageSettings().conversations),
    }


def build_stage(plan: Plan, method: str, folder: Path, dtype: Any, examples: int = 0) -> Any:
    """Our tuning stage over the plan's examples, ready to run."""
    from llmcxr.foundation.processes import Processes
    from llmcxr.instructions.templates import build_template
    from llmcxr.tuning.settings import StageSettings, TuningSettings
    from llmcxr.tuning.trainer import Stage
    from llmcxr.tuning.tunable import TunableModel

    examples = examples or plan.examples
    stage = StageSettings(examples=examples, learning_rate=RATE, rows_learning_rate=RATE)
    vocabulary = load_vocabulary()
    template = build_template("paper", vocabulary.tokenizer)
    settings = TuningSettings(
        method=cast(Any, method),
        lora_rank=plan.lora_rank,
        image_softmax=cast(Any, plan.image_softmax),
        tokens_per_batch=plan.tokens_per_batch,
        batches_per_step=max(1, round(plan.examples_per_step * mean_length(plan) / plan.tokens_per_batch)),
        logging="none",
        measure_share=1.0,
        stages=[stage],
    )
    model = load_model(plan, dtype)
    tunable = TunableModel(model, vocabulary, image_rows(model), settings)
    built = Stage(tunable, template, settings, stage, task_items(), {}, folder, Processes(plan.device), 0)
    built.points = examples  # of no example: one record of tokens and seconds a step
    return built


@functools.cache
def render_examples(plan: Plan) -> list[Any]:
    """The examples that a stage of this plan draws, rendered."""
    from llmcxr.instructions.mixture import Mixture
    from llmcxr.instructions.rendering import render
    from llmcxr.instructions.templates import build_template
    from llmcxr.tuning.settings import StageSettings

    vocabulary = load_vocabulary()
    template = build_template("paper", vocabulary.tokenizer)
    mixture = Mixture(task_items(), cast(Any, StageSettings().mixture), plan.examples, 0)
    return [render(mixture[i], template, vocabulary) for i in range(plan.examples)]


def mean_length(plan: Plan) -> float:
    """Tokens of an example."""
    lengths = [len(e.ids) for e in render_examples(plan)]
    return sum(lengths) / len(lengths)


# ------------------------------------------------------------------------------------------------------ the paper's way


def pad_to_longest(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Batch with attention mask; labels are -100 where nothing is learned."""
    import torch

    T = max(len(e["input_ids"]) for e in examples)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([list(e[key]) + [value] * (T - len(e[key])) for e in examples])

    return {
        "input_ids": padded("input_ids", 0),
        "attention_mask": padded("attention_mask", 0),
        "labels": padded("labels", -100),
    }


def trainer_rows(rendered: Sequence[Any]) -> list[dict[str, Any]]:
    """Rendered examples as rows of a Hugging Face data set."""
    return [
        {
            "input_ids": e.ids.tolist(),
            "attention_mask": [1] * len(e.ids),
            "labels": [int(i) if s else -100 for i, s in zip(e.ids, e.supervised, strict=True)],
        }
        for e in rendered
    ]


def build_trainer(plan: Plan, rendered: Sequence[Any], folder: Path, dtype: Any, autocast: bool) -> Any:
    """A stock `Trainer`; `.clock` holds (real tokens, seconds) at the end of each step."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from llmcxr.vocabulary.growing import grow_language_model

    class MasterAdamW(torch.optim.AdamW):
        """AdamW over float32 copies of bfloat16 weights, as DeepSpeed keeps them."""

        def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
            self.pairs = [(p, torch.nn.Parameter(p.detach().float())) for p in parameters]
            super().__init__([m for _, m in self.pairs], lr=RATE, betas=BETAS, weight_decay=0.0, fused=True)

        def zero_grad(self, set_to_none: bool = True) -> None:
            for p, _ in self.pairs:
                p.grad = None

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for p, master in self.pairs:
                master.grad, p.grad = p.grad.float(), None
            super().step()
            for p, master in self.pairs:
                p.copy_(master)
                master.grad = None

    class Timed(Trainer):
        """Counts what passes through."""

        tokens = 0

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            self.tokens += int(inputs["attention_mask"].sum())
            return super().compute_loss(model, inputs, *rest, **named)

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            synchronise(plan.device)
            trainer.clock.append((trainer.tokens, time.perf_counter()))

    model = load_model(plan, dtype)
    grow_language_model(model, load_vocabulary(), image_rows(model))
    model.config.use_cache = False
    model.requires_grad_(True)
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, per_device_eval_batch_size=2, num_train_epochs=1,
        gradient_accumulation_steps=max(1, plan.examples_per_step // 2), learning_rate=RATE, lr_scheduler_type="constant",
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch_fused",
        bf16=autocast, use_cpu=plan.device == "cpu", save_strategy="no", logging_strategy="no", report_to="none",
        remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=plan.device != "cpu",
    )  # fmt: skip
    optimizer = None if dtype == torch.float32 else MasterAdamW(list(model.parameters()))
    trainer: Any = Timed(
        model=model,
        args=arguments,
        data_collator=pad_to_longest,
        train_dataset=cast(Any, trainer_rows(rendered)),
        optimizers=(cast(Any, optimizer), None),
        callbacks=[Clock()],
    )
    trainer.clock = []
    return trainer


# ------------------------------------------------------------------------------------------------------- measuring


def synchronise(device: str) -> None:
    """Wait for the device."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def peak_memory(device: str) -> int:
    """Most bytes so far: of the allocator on a GPU, else resident bytes of this process."""
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    try:  # not getrusage: on Linux a child inherits its parent's peak there
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def matmul_rates(shapes: Mapping[tuple[int, int], int], tokens: int, device: str, seconds: float = 2.0) -> dict:
    """bfloat16 FLOP/s of the body's products over `tokens` rows, and of one large square product.

    `shapes` maps (out, in) to how many such matrices there are. For each: forward, gradient of the input and gradient
    of the matrix, so the mix is that of training.
    """
    import torch

    def rate(cases: Sequence[tuple[Any, int]], budget: float) -> float:
        """Work over time; `cases` are (function, FLOPs)."""
        for run, _ in cases:
            run()
        synchronise(device)
        work, start = 0.0, time.perf_counter()
        while work == 0 or time.perf_counter() - start < budget:
            for run, flops in cases:
                run()
                work += flops
            synchronise(device)
        return work / (time.perf_counter() - start)

    cases: list[tuple[Any, int]] = []
    for (out, width), count in shapes.items():
        x, w, y = (
            torch.randn(s, device=device, dtype=torch.bfloat16) for s in ((tokens, width), (out, width), (tokens, out))
        )
        flops = 2 * tokens * out * width
        for run in (lambda x=x, w=w: x @ w.T, lambda y=y, w=w: y @ w, lambda y=y, x=x: y.T @ x):
            cases += [(run, flops)] * count
    with torch.no_grad():
        n = 2048 if device == "cpu" else 8192
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
        return {"model_shapes": rate(cases, seconds), "square": rate([(lambda: a @ b, 2 * n**3)], seconds / 2)}


def body_shapes(plan: Plan) -> tuple[dict[tuple[int, int], int], Any]:
    """((out, in) -> count of the matrices of one layer, config) of the model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXConfig

    config = GPTNeoXConfig(**SHAPES[plan.shape]) if plan.shape else AutoConfig.from_pretrained(plan.model)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = config.get_text_config().num_hidden_layers
    shapes: dict[tuple[int, int], int] = {}
    tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    for p in model.parameters():
        if p.ndim == 2 and id(p) not in tables:
            shapes[tuple(p.shape)] = shapes.get(tuple(p.shape), 0) + 1
    return {s: max(1, n // layers) for s, n in shapes.items()}, config


def useful_flops(config: Any, body: int, rows: int, lengths: Sequence[int], supervised: int, lora: bool) -> dict:
    """FLOPs that the mathematics of one pass over examples asks for: no padding, no recomputation.

    `body` is P, `rows` V with the image rows. Linear layers: 2 P a token forward; backward 4 P (full) or 2 P (LoRA:
    only the gradient of the input; the adapters' own products are not counted). Attention: the causal half of two
    products, twice that backward. Head: at the `supervised` tokens only; with LoRA its backward is the gradient of the
    state and of the K image rows.
    """
    text = config.get_text_config()
    width = text.hidden_size
    attention_width = text.num_attention_heads * (getattr(text, "head_dim", None) or width // text.num_attention_heads)
    tokens = sum(lengths)
    head = 2 * rows * width * supervised
    return {
        "linear": (4 if lora else 6) * body * tokens,
        "attention": 3 * sum(2 * t * (t + 1) * attention_width for t in lengths) * text.num_hidden_layers,
        "head": 2 * head + 2 * K * width * supervised if lora else 3 * head,
    }


def measure(plan: Plan, method: str, folder: Path) -> dict[str, Any]:
    """Train with one method; tokens a second after the first step, peak memory, matrix rate before and after."""
    import torch

    shapes, _ = body_shapes(plan)
    before = matmul_rates(shapes, plan.tokens_per_batch, plan.device)
    if plan.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = peak_memory(plan.device)
    if method.startswith("trainer"):
        autocast = method == "trainer-autocast"
        rendered = render_examples(plan)
        trainer = build_trainer(plan, rendered, folder, torch.float32 if autocast else torch.bfloat16, autocast)
        trainer.train()
        clock = trainer.clock
    else:
        stage = build_stage(plan, method, folder, torch.bfloat16)
        stage.run()
        clock = [(r["tokens"], r["seconds"]) for r in json.loads((folder / "curves.json").read_text())[1:]]
    peak = peak_memory(plan.device)
    after = matmul_rates(shapes, plan.tokens_per_batch, plan.device)
    tokens, seconds = clock[-1][0] - clock[0][0], clock[-1][1] - clock[0][1]
    return {
        "tokens_per_second": tokens / seconds if seconds else math.nan,
        "tokens": tokens,
        "seconds": seconds,
        "steps": len(clock) - 1,
        "peak_bytes": peak,
        "bytes_before_loading": start,
        "matmul": {k: (before[k] + after[k]) / 2 for k in before},
    }


def compare_losses(plan: Plan, folder: Path) -> dict[str, float]:
    """Mean loss a supervised token of both ways in float32 before the first update, and their relative difference."""
    import torch

    from llmcxr.tuning.batches import collate, plan_batches
    from llmcxr.tuning.objective import token_losses

    rendered = render_examples(plan)
    trainer = build_trainer(plan, rendered, folder, torch.float32, autocast=False)
    supervised = sum(int(e.supervised[1:].sum()) for e in rendered)
    rows = trainer_rows(rendered)
    theirs = 0.0
    with torch.no_grad():
        trainer.model.eval()
        for i in range(0, len(rows), 2):
            batch = {k: v.to(plan.device) for k, v in pad_to_longest(rows[i : i + 2]).items()}
            theirs += float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(supervised)))
    del trainer
    stage = build_stage(plan, "full", folder, torch.float32)
    model = stage.tunable.model.to(plan.device).eval()
    groups = plan_batches(torch.tensor([len(e.ids) for e in rendered]).numpy(), plan.tokens_per_batch, 0)
    ours = 0.0
    with torch.no_grad():
        for group in groups:
            batch = collate([rendered[i] for i in group]).to(torch.device(plan.device))
            ours += float(token_losses(model, batch, stage.tunable.vocabulary, "all_rows").losses.double().sum())
    ours /= supervised
    return {"trainer": theirs, "llmcxr": ours, "relative_difference": abs(ours - theirs) / abs(theirs)}


def describe(plan: Plan) -> dict[str, Any]:
    """Lengths, work and the machine."""
    import torch

    rendered = render_examples(plan)
    shapes, config = body_shapes(plan)
    text = config.get_text_config()
    body = text.num_hidden_layers * sum(n * a * b for (a, b), n in shapes.items())
    lengths = [len(e.ids) for e in rendered]
    supervised = sum(int(e.supervised[1:].sum()) for e in rendered)
    rows = max(text.vocab_size, load_vocabulary().first_id) + K
    flops = {m: useful_flops(config, body, rows, lengths, supervised, m == "lora") for m in METHODS}
    pairs = [max(lengths[i : i + 2]) * len(lengths[i : i + 2]) for i in range(0, len(lengths), 2)]
    return {
        "examples": len(lengths),
        "tokens": sum(lengths),
        "supervised_tokens": supervised,
        "longest": max(lengths),
        "padding_share_of_pairs": 1 - sum(lengths) / sum(pairs),
        "body_weights": body,
        "flops_per_token": {m: {k: v / sum(lengths) for k, v in f.items()} for m, f in flops.items()},
        "device": "cpu" if plan.device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def prepare(plan: Plan, folder: Path) -> dict[str, Any]:
    """Unpack an asset once, so that no measured process holds the packed file; seconds a real token of batch 2."""
    import torch

    from llmcxr.foundation.assets import ASSETS
    from llmcxr.vocabulary.language_model import load_language_model

    if not plan.shape and plan.model in ASSETS:
        load_language_model(plan.model, torch.bfloat16).save_pretrained(folder / "base")
        plan = Plan(**asdict(plan) | {"model": str(folder / "base")})
    model = load_model(plan, torch.bfloat16).to(plan.device)
    ids = torch.randint(0, 1000, (2, 300), device=plan.device)
    for _ in range(2):  # the first is a warm-up
        start = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        synchronise(plan.device)
    rate = 600 / (time.perf_counter() - start)
    return {"model": plan.model, "tokens_per_second": rate, "tokens_per_example": mean_length(plan)}


# ------------------------------------------------------------------------------------------------------------ the run


def in_fresh_process(job: str, plan: Plan, folder: Path) -> dict[str, Any]:
    """Run `job` in a process of its own and return its JSON; what it writes stays in `folder`."""
    answer = folder / "answer.json"
    command = [sys.executable, __file__, "--job", job, "--plan", json.dumps(asdict(plan)), "--json", str(answer)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{job} failed:\n{result.stderr[-3000:]}")
    return json.loads(answer.read_text())


def run_job(job: str, plan: Plan, folder: Path) -> dict[str, Any]:
    """One job, in this process."""
    if job == "prepare":
        return prepare(plan, folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if job == "losses":
            return compare_losses(plan, Path(scratch))
        if job == "describe":
            return describe(plan)
        return measure(plan, job, Path(scratch))


def table(result: Mapping[str, Any]) -> str:
    """The measurements as a table."""
    base = result["methods"].get("trainer") or next(iter(result["methods"].values()))
    lines = [
        "| method | real tokens/s | times | peak memory | times | of matmul rate, model's shapes | of matmul rate, square |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, m in result["methods"].items():
        speed = m["tokens_per_second"] / base["tokens_per_second"]
        lines.append(
            f"| {name} | {m['tokens_per_second']:,.0f} | {speed:.2f} | {m['peak_bytes'] / 1e9:.2f} GB | "
            f"{m['peak_bytes'] / base['peak_bytes']:.2f} | {m['share_of_model_shapes']:.0%} | {m['share_of_square']:.0%} |"
        )
    return "\n".join(lines)


def summarise(runs: Mapping[str, Sequence[Mapping[str, Any]]], described: Mapping[str, Any]) -> dict[str, Any]:
    """Median over the repeats of each method, with the shares of the matrix rate measured in the same process."""
    methods = {}
    for name, own in runs.items():
        flops = sum(described["flops_per_token"][name].values())

        def median(value: Any, own: Sequence[Mapping[str, Any]] = own) -> float:
            return statistics.median(value(r) for r in own)

        methods[name] = {
            "about": METHODS[name],
            "tokens_per_second": median(lambda r: r["tokens_per_second"]),
            "peak_bytes": median(lambda r: r["peak_bytes"]),
            "useful_flops_per_second": flops * median(lambda r: r["tokens_per_second"]),
        }
        for key in ("model_shapes", "square"):
            methods[name][f"share_of_{key}"] = median(
                lambda r, key=key, flops=flops: flops * r["tokens_per_second"] / r["matmul"][key]
            )
        methods[name]["runs"] = list(own)
    return methods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="an asset, or the folder of a checkpoint")
    parser.add_argument(
        "--shape", default="", choices=["", *SHAPES], help="random weights of this shape instead of a model"
    )
    parser.add_argument(
        "--methods", default="trainer,trainer-autocast,full,lora", help=f"of {', '.join(METHODS)}; the first is 1.00"
    )
    parser.add_argument("--examples", type=int, default=0, help="examples of each measurement; 0: what --seconds allow")
    parser.add_argument("--seconds", type=float, default=60, help="about how long the paper's way should train")
    parser.add_argument("--repeats", type=int, default=1, help="rounds over all methods; medians are shown")
    parser.add_argument("--examples-per-step", type=int, default=16, help="the paper: 8 devices of 2")
    parser.add_argument("--tokens-per-batch", type=int, default=2048, help="ours: padded tokens computed at once")
    parser.add_argument("--lora-rank", type=int, default=64)
    parser.add_argument(
        "--image-softmax", default="all_rows", choices=["all_rows", "image_rows"], help="all_rows is the paper's"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", type=Path, default=Path("tuning_speed.json"), help="where the measurements go")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.job:
        plan = Plan(**json.loads(o.plan))
        o.json.write_text(json.dumps(run_job(o.job, plan, o.json.parent)))
        return
    names = o.methods.split(",")
    if unknown := [n for n in names if n not in METHODS]:
        parser.error(f"--methods: {', '.join(unknown)} is none of {', '.join(METHODS)}")

    from llmcxr.foundation.devices import pick_device

    with tempfile.TemporaryDirectory() as scratch:
        plan = Plan(o.model, o.shape, pick_device(o.device).type, o.examples or 64, o.examples_per_step, o.tokens_per_batch,
                    o.lora_rank, o.image_softmax)  # fmt: skip
        say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
        say("preparing the model ...")
        folder = Path(scratch)
        ready = in_fresh_process("prepare", plan, folder)
        step = plan.examples_per_step
        wanted = o.examples or o.seconds * ready["tokens_per_second"] / ready["tokens_per_example"]
        examples = step * (1 + max(1, round(wanted / step)))  # whole steps, and one to warm up
        plan = Plan(**asdict(plan) | {"model": ready["model"], "examples": examples})
        described = in_fresh_process("describe", plan, folder)
        say("comparing losses ...")
        losses = in_fresh_process("losses", Plan(**asdict(plan) | {"examples": 8}), folder)
        runs: dict[str, list[dict[str, Any]]] = {n: [] for n in names}
        for round_, name in itertools.product(range(o.repeats), names):
            say(f"{name}, round {round_ + 1} of {o.repeats}, {examples} examples ...")
            runs[name].append(in_fresh_process(name, plan, folder))
    result = {"plan": asdict(plan) | {"model": o.model}, "examples": described, "losses": losses}
    result["methods"] = summarise(runs, described)
    o.json.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    print(
        f"\nMean loss before the first update, float32, the same examples: {losses['trainer']:.6f} and {losses['llmcxr']:.6f}, "
        f"relative difference {losses['relative_difference']:.1e}. Written to {o.json}."
    )


if __name__ == "__main__":
    main()
