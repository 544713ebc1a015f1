"""How long something takes, as people say it."""

from __future__ import annotations


def time_of(hours: float) -> str:
    """In the unit that goes with it, e.g. 6.3 minutes."""
    for unit, length, least in (("days", 24.0, 72.0), ("hours", 1.0, 1.0), ("minutes", 1 / 60, 1 / 60)):
        if hours >= least:
            value = hours / length
            return f"{value:,.0f} {unit}" if unit == "minutes" and value >= 10 else f"{value:,.1f} {unit}"
    return "under a minute"
