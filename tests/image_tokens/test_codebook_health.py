"""Use, perplexity and restarts of a codebook in training, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from llmcxr.image_tokens.codebook_health import CodebookHealth, restart_dead_codes


class Fixed(nn.Module):
    """A quantizer that finds the codes that it is given."""

    def forward(self, codes):
        return codes, codes, codes


def numbers(health):
    return {name: term.item() for name, term in health.terms().items()}


def test_by_hand():
    quantizer = Fixed()
    health = CodebookHealth(quantizer, 4)  # remembers 40 vectors
    assert numbers(health)["codebook_use"] == 0
    quantizer(torch.tensor([[0, 0], [1, 1]]))
    assert numbers(health) == {"codebook_use": 0.5, "perplexity": pytest.approx(2), "restarts": 0}
    for _ in range(8):
        quantizer(torch.full((5,), 2))
    assert numbers(health)["codebook_use"] == 0.25  # 0 and 1 were met 40 vectors ago
    assert 1 < numbers(health)["perplexity"] < 2
    quantizer(torch.full((40,), 3))  # a step as long as the memory: what was before counts no more
    assert numbers(health)["perplexity"] == pytest.approx(1)
    quantizer.eval()(torch.tensor([0, 1]))
    assert numbers(health)["codebook_use"] == 0.25  # only training is watched


def test_restarts_are_those_of_the_quantizer():
    """Vectors of one kind: all codes but one die together, and are restarted once their averages have faded."""
    torch.manual_seed(0)
    quantizer = VectorQuantize(
        dim=2, codebook_size=4, decay=0.5, threshold_ema_dead_code=1, accept_image_fmap=True, kmeans_init=True
    )
    quantizer._codebook.threshold_ema_dead_code = 0.2
    health = CodebookHealth(quantizer, 4)
    quantizer(torch.randn(8, 2, 4, 4))
    restarts = []
    for _ in range(8):
        before = quantizer._codebook.cluster_size.clone()
        quantizer(torch.ones(8, 2, 4, 4))
        codes = health.unmet == 0
        dead = (0.5 * before < 0.2) & ~codes.cpu()
        restarts.append((health.restarts.item(), int(dead.sum())))
    total = 0
    for counted, dead in restarts:
        total += dead
        assert counted == total
    assert total >= 3


def test_it_is_part_of_a_checkpoint():
    quantizer = Fixed()
    health = CodebookHealth(quantizer, 4)
    quantizer(torch.tensor([0, 1, 1]))
    again = CodebookHealth(Fixed(), 4)
    again.load_state_dict(health.state_dict())
    assert numbers(again) == numbers(health)


@pytest.mark.parametrize("vectors", [16, 256, 8192])  # a quarter of a vector a code, 4, and 128
def test_a_restarted_code_lives_until_it_could_have_been_met(vectors):
    """All vectors alike: every code but one dies once in ln 5 / -ln 0.9 = 15 to 16 steps, however many vectors a step has."""
    torch.manual_seed(0)
    quantizer = VectorQuantize(
        dim=2, codebook_size=64, decay=0.9, threshold_ema_dead_code=1, accept_image_fmap=True, kmeans_init=True
    )
    health = CodebookHealth(quantizer, 64)
    restart_dead_codes(quantizer, vectors)
    for step in range(100):
        quantizer(torch.randn(vectors // 16, 2, 4, 4) if step == 0 else torch.ones(vectors // 16, 2, 4, 4))
    assert health.restarts.item() <= 63 * 100 / 15
    if vectors >= 64:  # else there are fewer vectors than dead codes, and some wait
        assert health.restarts.item() >= 62 * (100 // 17)
