"""The small reader of codes learns from codes what labels say, and keeps the scale of the vectors."""

from __future__ import annotations

import numpy as np
import torch

from llmcxr.vocabulary.reader import ReaderSettings, reader_vectors


def test_codes_that_mean_the_same_move_together():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (200, 1)).astype(np.float32)
    # Codes 0..3 occur where the finding is absent, 4..7 where it is present.
    codes = (rng.integers(0, 4, (200, 6)) + 4 * labels.astype(int)).astype(np.uint16)
    vectors = 3.0 * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    moved = reader_vectors(vectors, codes, labels, ReaderSettings(60, 32, 3e-3), seed=0) - vectors
    assert moved.shape == (8, 16) and not moved.requires_grad
    similarity = torch.nn.functional.cosine_similarity(moved[:, None], moved[None], dim=-1)
    within = (similarity[:4, :4].sum() + similarity[4:, 4:].sum() - 8) / 24
    between = similarity[:4, 4:].mean()
    assert within > 0.5 and between < 0
    assert moved.norm() < vectors.norm()


def test_unknown_labels_teach_nothing_and_the_seed_decides():
    codes = np.arange(12, dtype=np.uint16).reshape(4, 3) % 8
    vectors = torch.randn(8, 16)
    unknown = reader_vectors(vectors, codes, np.full((4, 2), np.nan, np.float32), ReaderSettings(3, 4, 1e-3), 0)
    torch.testing.assert_close(unknown, vectors, atol=1e-3, rtol=1e-3)  # weight decay only
    labels = np.array([[0], [1], [0], [1]], np.float32)
    a, b = (reader_vectors(vectors, codes, labels, ReaderSettings(3, 4, 1e-3), 5) for _ in range(2))
    assert torch.equal(a, b)
