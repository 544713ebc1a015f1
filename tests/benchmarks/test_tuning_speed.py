"""The benchmark's counting by hand, and that both ways of tuning have the same loss."""

from __future__ import annotations

import pytest
from conftest import load_script
from transformers import LlamaConfig

speed = load_script("benchmarks/tuning_speed.py")

PLAN = speed.Plan("", "toy", "cpu", 4, 4, 1024, 4, "all_rows")


def test_useful_work_by_hand():
    config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=3, head_dim=4)
    full = speed.useful_flops(config, 100, 50, [2, 3], 4, lora=False)
    assert full["linear"] == 6 * 100 * 5
    # pairs (query, key) of the causal half: 3 and 6; two products of 2 * 8 forward, twice that backward, three layers
    assert full["attention"] == (3 + 6) * 2 * (2 * 8) * 3 * 3
    assert full["head"] == 3 * 2 * 50 * 8 * 4
    lora = speed.useful_flops(config, 100, 50, [2, 3], 4, lora=True)
    assert lora["linear"] == 4 * 100 * 5 and lora["head"] == 2 * (2 * 50 * 8 * 4) + 2 * speed.K * 8 * 4


def test_table_compares_with_the_first_method():
    described = {"flops_per_token": {m: {"linear": 100.0} for m in speed.METHODS}}
    run = {"tokens_per_second": 10.0, "peak_bytes": 4e9, "matmul": {"model_shapes": 2000.0, "square": 4000.0}}
    runs = {"trainer": [run], "full": [run | {"tokens_per_second": t, "peak_bytes": 1e9} for t in (19.0, 20.0, 90.0)]}
    methods = speed.summarise(runs, described)
    assert methods["full"]["share_of_model_shapes"] == pytest.approx(1.0)  # 100 * 20 / 2000, of the median
    assert "| full | 20 | 2.00 | 1.00 GB | 0.25 | 100% | 50% |" in speed.table({"methods": methods})


def test_both_ways_have_the_same_loss(tmp_path):
    losses = speed.compare_losses(PLAN, tmp_path)
    assert losses["trainer"] > 1 and losses["relative_difference"] < 1e-3
