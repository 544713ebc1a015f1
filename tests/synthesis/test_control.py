"""What can be told without the image is found; balance takes, never invents, and lowers it."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcxr.synthesis.balance import balanced, yes_or_no
from llmcxr.synthesis.control import answered_blind
from llmcxr.synthesis.pairs import QaPair


def population(count: int = 1500) -> list[QaPair]:
    """Presence that finding and wording give away: nine in ten, and sides that nothing does."""
    rng, pairs = np.random.default_rng(0), []
    for k in range(count):
        name, share = (("effusion", 0.9), ("mass", 0.1), ("opacity", 0.5))[k % 3]
        yes = rng.random() < share
        opening = "Is there evidence of" if k % 3 == 2 and not yes and rng.random() < 0.9 else "Is there"
        pairs.append(QaPair("i", f"s{k}", f"{opening} {name}?", "Yes." if yes else "No.", "presence", "llm", "", name))
        pairs.append(
            QaPair(
                "i",
                f"s{k}",
                f"Which side is the {name} on?",
                str(rng.choice(["Left.", "Right."])),
                "location",
                "llm",
                "",
                name,
            )
        )
    return pairs


def test_balance_lowers_what_the_words_give_away():
    pairs = population()
    taken = [pair for pair, own in zip(pairs, balanced(pairs, 0), strict=True) if own]
    before, after = answered_blind(pairs, 0), answered_blind(taken, 0)
    assert before["presence"].by_question > 0.85
    assert abs(before["location"].by_question - 0.5) < 0.06
    assert after["presence"].by_question < 0.6 and after["yes or no"].by_majority == 0.5
    assert after["presence"].pairs > 200 and after["location"].pairs > 0.9 * before["location"].pairs


def test_an_open_answer_that_begins_with_no_is_balanced_as_any_other():
    """ "No abnormal finding." would lose every pair if it were the "no" of a question that nobody answers with "yes"."""
    answers = ["No abnormal finding."] * 60 + ["Cardiomegaly."] * 30 + ["Right nodule."] * 10
    pairs = [QaPair(f"i{k}", f"s{k}", "Which findings are there?", a, "open", "rules") for k, a in enumerate(answers)]
    taken = Counter(pair.answer for pair, own in zip(pairs, balanced(pairs, 0), strict=True) if own)
    assert taken == {"No abnormal finding.": 40, "Cardiomegaly.": 30, "Right nodule.": 10}
    assert {yes_or_no(pair) for pair in pairs} == {""}


def test_too_few_pairs_say_nothing():
    assert answered_blind(population(10), 0) == {}


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["Yes.", "No.", "Left."])), max_size=150), st.integers(0, 3)
)
@settings(max_examples=40, deadline=None)
def test_as_much_yes_as_no_whatever_there_is(rows, seed):
    pairs = [
        QaPair(f"i{k}", f"s{k}", f"Is there f{f}?", answer, "presence", "llm", "", f"f{f}")
        for k, (f, answer) in enumerate(rows)
    ]
    taken = balanced(pairs, seed)
    left = [yes_or_no(pair) for pair, own in zip(pairs, taken, strict=True) if own]
    assert left.count("yes") == left.count("no")
    assert left.count("") == sum(answer == "Left." for _, answer in rows)
    assert np.array_equal(taken, balanced([dataclasses.replace(pair) for pair in pairs], seed))


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["Mild.", "Moderate.", "Severe.", "Left."])), max_size=150),
    st.sampled_from([0.5, 0.8]),
)
@settings(max_examples=40, deadline=None)
def test_no_answer_to_a_frequent_question_is_commoner_than_allowed(rows, most):
    pairs = [
        QaPair(f"i{k}", f"s{k}", f"How severe is f{f}?", answer, "severity", "llm", "", f"f{f}")
        for k, (f, answer) in enumerate(rows)
    ]
    taken = [pair for pair, own in zip(pairs, balanced(pairs, 0, most), strict=True) if own]
    for question in {pair.question for pair in pairs}:
        before, after = (Counter(p.answer for p in part if p.question == question) for part in (pairs, taken))
        if before.total() >= 20:
            assert max(after.values(), default=0) <= most * after.total() + 1e-9
            rarer = before.total() - max(before.values())
            assert after.total() >= min(
                before.total(), int(rarer / (1 - most))
            )  # no more is taken away than that needs
    if len(pairs) < 20:
        assert taken == pairs  # too few to say
