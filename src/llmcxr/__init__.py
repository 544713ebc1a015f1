"""llmcxr: teach a text-only LLM to read and write chest radiographs. For research only."""

__version__ = "0.1.0"
