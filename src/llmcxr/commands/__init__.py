"""What `llmcxr` can be told. Heavy libraries are imported where they are used."""

# In the order in which `llmcxr --help` lists them: what a newcomer does first.
from llmcxr.commands import use, runs, looks, synthesis, tokenizers, formats  # isort: skip
from llmcxr.commands.table import COMMANDS, NOTICE

__all__ = ["COMMANDS", "NOTICE", "formats", "looks", "runs", "synthesis", "tokenizers", "use"]
