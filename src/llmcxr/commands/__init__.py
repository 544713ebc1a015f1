"""What `llmcxr` can be told. Heavy libraries are imported where they are used."""

from llmcxr.commands import runs, synthesis, use
from llmcxr.commands.table import COMMANDS, NOTICE

__all__ = ["COMMANDS", "NOTICE", "runs", "synthesis", "use"]
