"""A stage at toy size, for tests of the loop in one process, in several, and killed.

Processes come from a server that has imported the libraries once; they start in a moment.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import socket
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from conftest import build_model, build_tokenizer

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.processes import Processes
from llmcxr.instructions.example import Turn
from llmcxr.instructions.templates import build_template
from llmcxr.tasks.cxr_to_report import CxrToReportItems
from llmcxr.tasks.findings_first import ImageReport
from llmcxr.tasks.language import LanguageItems
from llmcxr.tasks.report_to_cxr import ReportToCxrItems
from llmcxr.tuning import feed
from llmcxr.tuning.settings import StageSettings, TuningSettings
from llmcxr.tuning.trainer import Stage
from llmcxr.tuning.tunable import TunableModel
from llmcxr.vocabulary.image_vocabulary import ImageVocabulary

K = 8
WINDOW = 16  # set feed.WINDOW to it, so that a toy stage has several
rng = np.random.default_rng(0)
PAIRS = [ImageReport(f"i{k}", rng.integers(0, K, 4).astype(np.uint16), f"The heart is {k % 3}.") for k in range(12)]
LONG = [ImageReport("long", PAIRS[0].codes, "The lungs are clear, " * 40)]  # one sentence: cannot be cut
SENTENCES = [ImageReport("sentences", PAIRS[0].codes, "The lungs are clear. " * 40)]
STAGE = StageSettings(
    examples=40,
    mixture={"language": 0.2, "report_to_cxr": 0.4, "cxr_to_report": 0.4},
    learning_rate=3e-3,
    rows_learning_rate=3e-3,
    task_loss_weights={"report_to_cxr": 0.5},
)
SETTINGS = TuningSettings(
    lora_rank=4,
    template="chat",
    max_tokens=180,
    tokens_per_batch=300,
    batches_per_step=2,
    measure_share=0.0,
    logging="none",
    stages=[STAGE],
)


def tasks(pairs):
    return {
        "language": LanguageItems([Turn("Say yes.", "", "Yes."), Turn("Say no.", "", "No.")]),
        "report_to_cxr": ReportToCxrItems(pairs),
        "cxr_to_report": CxrToReportItems(pairs),
    }


def stage(
    folder, settings=SETTINGS, pairs=PAIRS, dtype=torch.float32, processes=None, kind="llama", dropout=0.0, before=None
) -> Stage:
    processes = processes or Processes("cpu")
    vocabulary = ImageVocabulary.grow(build_tokenizer(), K)
    with torch.device("meta") if processes.receives else nullcontext():
        model = build_model(kind, vocabulary.first_id, True).to(dtype)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        rows = 0.2 * torch.randn(K, 32, generator=None if processes.receives else torch.Generator().manual_seed(1))
        tunable = TunableModel(model, vocabulary, rows, settings)
    template = build_template("chat", vocabulary.tokenizer)
    toy = Stage(
        tunable, template, settings, settings.stages[0], tasks(pairs), tasks(PAIRS[:2]), folder, processes, 0, before
    )
    toy.save_minutes = 0.0
    return toy


def set_up(**environment: str) -> None:
    """What a launcher and the tests' fixtures do, in a new process."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    feed.WINDOW = WINDOW


_LIBRARIES = ["transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2", "torch._dynamo"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*_LIBRARIES, "peft", "accelerate", "llmcxr.tuning.trainer", "tensorboard.compat"])


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def together(function, *arguments, count: int = 2, **environment: str) -> list[tuple[int | None, str]]:
    """Run `function(processes, *arguments)` on `count` CPU processes; exit code and message (of a UserError) of each."""
    port = free_port()
    messages = [SERVER.Queue() for _ in range(count)]
    started = []
    for rank in range(count):
        launched = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        } | environment
        process = SERVER.Process(target=_one, args=(function, arguments, launched, messages[rank]))
        process.start()
        started.append(process)
    results = []
    for process, queue in zip(started, messages, strict=True):
        process.join(300)
        if process.is_alive():
            process.kill()
            process.join()
        results.append((process.exitcode, "" if queue.empty() else queue.get()))
    return results


def _one(function, arguments, environment, queue) -> None:
    set_up(**environment)
    processes = Processes("cpu")
    try:
        function(processes, *arguments)
    except UserError as error:
        queue.put(str(error))
        queue.close()
        queue.join_thread()
        raise SystemExit(2) from None
    processes.close()


def run_stage(processes: Processes | None, folder: Path, settings=SETTINGS, dtype=torch.float32) -> None:
    stage(folder, settings, dtype=dtype, processes=processes).run()


def full(**changes) -> TuningSettings:
    return dataclasses.replace(SETTINGS, method="full", **changes)
