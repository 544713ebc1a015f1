"""Times as people say them."""

from __future__ import annotations

import pytest

from llmcxr.foundation.durations import time_of

SAID = {
    0: "under a minute",
    0.9 / 60: "under a minute",
    1 / 60: "1.0 minutes",
    6.34 / 60: "6.3 minutes",
    0.5: "30 minutes",
}
SAID |= {1.25: "1.2 hours", 71.9: "71.9 hours", 72: "3.0 days", 30_000: "1,250.0 days"}


@pytest.mark.parametrize("hours", SAID)
def test_the_unit_goes_with_the_time(hours):
    assert time_of(hours) == SAID[hours]
