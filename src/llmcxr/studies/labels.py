"""The label sets: the one place where names of findings are spelt."""

from __future__ import annotations

# What the phantom can draw, most frequent first. Sides are kept in `Finding.side`.
PHANTOM_FINDINGS: tuple[str, ...] = (
    "granuloma",
    "opacity",
    "cardiomegaly",
    "support device",
    "hypoinflation",
    "tortuous aorta",
    "atelectasis",
    "hyperinflation",
    "interstitial markings",
    "pleural effusion",
    "elevated diaphragm",
    "scoliosis",
    "nodule",
    "pulmonary edema",
    "hiatal hernia",
    "pneumothorax",
    "mass",
)
