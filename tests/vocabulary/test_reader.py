"""The small reader of codes finds which codes speak for a finding and starts their rows near the finding's words."""

from __future__ import annotations

import numpy as np
import torch

from llmcxr.vocabulary import reader
from llmcxr.vocabulary.growing import ROW_SPREAD, projected_rows
from llmcxr.vocabulary.reader import read_codes_linearly, reader_rows


def _data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (300, 2)).astype(np.float32)
    # Codes 0..3 occur where the first finding is absent, 4..7 where it is present; the second has no code of its own.
    codes = (rng.integers(0, 4, (300, 6)) + 4 * labels[:, :1].astype(int)).astype(np.uint16)
    return codes, labels


def test_evidence_has_the_sign_of_the_finding_and_unit_spread():
    codes, labels = _data()
    evidence = read_codes_linearly(codes, labels, 8)
    assert (evidence[:4, 0] < 0).all() and (evidence[4:, 0] > 0).all()
    torch.testing.assert_close(evidence.std(0), torch.ones(2))


def test_unknown_labels_are_no_evidence(monkeypatch):
    monkeypatch.setattr(reader, "_STEPS", 50)
    monkeypatch.setattr(reader, "_PENALTY", 0.0)
    codes, labels = _data()
    half = labels.copy()
    half[::2, 0] = np.nan
    known = read_codes_linearly(codes[1::2], labels[1::2], 8)
    masked = read_codes_linearly(codes, half, 8)
    # Of the first finding only the known half counts; Adam's steps do not depend on the loss's scale.
    torch.testing.assert_close(masked[:, 0], known[:, 0], atol=0.05, rtol=0.05)
    nothing = read_codes_linearly(codes, np.full_like(labels, np.nan), 8)
    assert (nothing == 0).all()


def test_rows_lean_towards_the_words_of_their_finding(monkeypatch):
    codes, labels = _data()
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 16, generator=generator)
    words = torch.nn.functional.normalize(torch.randn(2, 16, generator=generator), dim=1)
    vectors = torch.randn(8, 4, generator=generator)
    start = projected_rows(vectors, table, seed=3)
    rows = reader_rows(vectors, codes, labels, words, table, seed=3)
    lean = (rows - start) @ words[0]
    assert (lean[4:] > lean[:4].max()).all()
    torch.testing.assert_close((rows - start).std(), 0.7 * ROW_SPREAD * table.std())
    monkeypatch.setattr(reader, "_STRENGTH", 0.0)
    none = reader_rows(vectors, codes, labels, words, table, seed=3)
    torch.testing.assert_close(none, start)
