"""The sources by name, and the settings that choose one."""

from __future__ import annotations

from dataclasses import dataclass, fields

from llmcxr.foundation.settings import Settings, setting
from llmcxr.sources.base import Source
from llmcxr.sources.phantom.settings import PhantomSettings
from llmcxr.sources.table import TableSettings


@dataclass(frozen=True)
class SourceSettings(Settings):
    """Where radiographs and reports come from: one block a source, of which `kind` names the one that is used."""

    kind: str = setting("phantom", "which of the blocks here: phantom (simulated radiographs), table (your own files)")
    access: str = setting("", "how to get the data; said where they are missing")
    phantom: PhantomSettings | None = setting(PhantomSettings(), "used where kind is phantom")
    table: TableSettings | None = setting(None, "used where kind is table")

    def faults(self) -> list[str]:
        """Impossible combinations."""
        kinds = [f.name for f in fields(self) if f.name not in ("kind", "access")]
        if self.kind not in kinds:
            return [f"kind: {self.kind!r} is not one of {', '.join(kinds)}"]
        return [f"{self.kind}: is required where kind is {self.kind}"] if getattr(self, self.kind) is None else []


def build_source(settings: SourceSettings, seed: int) -> Source:
    """The source that the settings name; `seed` splits patients where the data states no splits."""
    source: Source = getattr(settings, settings.kind).build(seed, settings.access)
    return source
