"""Settings of the chat LLM that writes and rewrites texts, and of the questions that it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from llmcxr.foundation.errors import UserError
from llmcxr.foundation.settings import Count, NameOrPath, Range, Settings, setting
from llmcxr.instructions.questions import Origin
from llmcxr.synthesis.address import split_address

Amount = Annotated[float, Range(0, 1_000_000_000, above=True)]
Price = Annotated[float, Range(0, 1_000_000)]


@dataclass(frozen=True)
class BudgetSettings(Settings):
    """What all answers of a run together may take; None: without end. Work stops before it would be more."""

    requests: Count | None = setting(None, "requests that are sent, those that fail included")
    tokens: Annotated[int, Range(1, 10**15)] | None = setting(None, "tokens, of prompts and answers")
    money: Amount | None = setting(None, "in the currency of the prices")
    input_price: Price = setting(0.0, "of a million tokens of prompts")
    output_price: Price = setting(0.0, "of a million tokens of answers")

    def faults(self) -> list[str]:
        """A budget of money needs prices."""
        if self.money is not None and self.input_price == self.output_price == 0:
            return ["money: needs prices (input_price, output_price)"]
        return []


@dataclass(frozen=True)
class ChatSettings(Settings):
    """The chat LLM that writes questions and rewrites sentences of reports: a server's, or one in this process."""

    model: NameOrPath = setting(
        "smollm2-135m-instruct",
        "its name at the server; without base_url an asset, a local folder, or a Hugging Face id",
    )
    base_url: str | None = setting(
        None, "of an OpenAI-compatible server (vLLM, llama.cpp, hosted); None: the model runs in this process"
    )
    allow_remote: bool = setting(False, "send reports to a server that is not of this machine or a private network")
    key_variable: str = setting(
        "OPENAI_API_KEY", "environment variable that holds the server's key, where it needs one"
    )
    concurrency: Annotated[int, Range(1, 4096)] = setting(8, "requests at once")
    requests_per_minute: Amount | None = setting(None, "most that the server allows")
    tokens_per_minute: Amount | None = setting(None, "most that the server allows, of prompts and answers")
    budget: BudgetSettings = setting(BudgetSettings(), "what the answers of a run may take")

    def faults(self) -> list[str]:
        """What is no address."""
        try:
            _ = self.base_url is None or split_address(self.base_url)
        except UserError as error:
            return [str(error).removeprefix("chat.")]
        return []


@dataclass(frozen=True)
class VqaSettings(Settings):
    """Questions about images, and where they come from."""

    origins: tuple[Origin, ...] = setting(
        ("truth", "rules", "llm"),
        "where the questions that train come from: truth (findings that are known exactly), rules (labels and reports; of images "
        "without truth), llm (those that a chat LLM wrote)",
    )
    synthesize: bool = setting(False, "a chat LLM (`chat`) writes questions and answers from reports")
    only_positive: bool = setting(True, "only from reports of images with at least one finding (the paper)")
    prompt: Path | None = setting(None, "YAML file with a prompt of your own (docs/vqa.md), instead of the shipped one")
