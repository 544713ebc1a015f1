"""How well and how fast are questions from reports checked, and what can be answered without the image?

    python benchmarks/vqa_checks.py                    # tables for docs/vqa.md: invented reports, speed, control
    python benchmarks/vqa_checks.py --reports 300      # fewer of the 3,955 Indiana reports (fetched) for speed and control
    python benchmarks/vqa_checks.py --ask 40 --answers F   # instead: a chat LLM (SmolLM2 in this process) on 40 of the reports
    python benchmarks/vqa_checks.py --ask 40 --answers F --url http://localhost:8080/v1 --model M    # or a server's
    python benchmarks/vqa_checks.py --mistakes         # and the pairs judged wrongly, of the parts that may be read

Quality is counted on tests/synthesis/cases/reports.jsonl, invented reports: those that checks were mended for, and
those ("last") that none was mended for. A pair that its report says nothing of ("silent") should be kept. Speed: pairs
that rules made of the Indiana reports, half of them turned wrong, each report and pair read once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from llmcxr.foundation.assets import fetch
from llmcxr.foundation.randomness import stream
from llmcxr.labelling.registry import build_labeller
from llmcxr.sources.phantom.reports import read_reports
from llmcxr.studies.report_sections import report_text
from llmcxr.studies.study import Study
from llmcxr.synthesis.checks import REASONS, check_pairs
from llmcxr.synthesis.client import ChatClient
from llmcxr.synthesis.control import Control
from llmcxr.synthesis.generate import reports_to_ask, requests_of, write_all
from llmcxr.synthesis.pairs import QaPair
from llmcxr.synthesis.prompts import vqa_prompt
from llmcxr.synthesis.rules import rule_pairs
from llmcxr.synthesis.settings import ChatSettings
from llmcxr.synthesis.store import AnswerStore

CASES = Path(__file__).parents[1] / "tests" / "synthesis" / "cases" / "reports.jsonl"
PARTS = {
    "that checks were mended for": ("tuning", "held out", "fresh"),
    "that no check was mended for": ("last",),
}
WRONG = {"Yes.": "No.", "No.": "Yes.", "Left.": "Right.", "Right.": "Left.", "Mild.": "Severe.", "Severe.": "Mild."}


def quality(name: str, parts: Sequence[str], mistakes: bool) -> None:
    """Print the table of precision and recall per reason, and of good pairs kept."""
    wanted, found, both = Counter[str](), Counter[str](), Counter[str]()
    kept, unknown, types = Counter[str](), Counter[str](), 0
    for line in CASES.open(encoding="utf-8"):
        case = json.loads(line)
        for told in case["pairs"] if case["half"] in parts else ():
            pair = QaPair("i", "s", told["question"], told["answer"], told["type"], "llm")
            checked = check_pairs(case["report"], [pair])[0]
            got, expected = checked.reason or "good", told["expected"]
            if expected == "silent":
                expected = "good"
            wanted[expected] += 1
            found[got] += 1
            both[got] += got == expected
            kept[expected] += checked.kept
            unknown[expected] += checked.verdict == "unknown"
            types += got == told["expected"] == "good" and checked.type != told["type"]
            if mistakes and "last" not in parts and got != expected:
                print(f"{expected} -> {got}: {told['question']} {told['answer']} | {case['report']}")
    print(
        f"\nInvented reports {name}: {kept['good']} of {wanted['good']} good pairs kept; "
        f"{wanted['contradicted'] - kept['contradicted']} of {wanted['contradicted']} contradictions rejected, "
        f"{unknown['contradicted']} more marked unknown, as {unknown['good']} good ones are; "
        f"{types} types other than ours\n"
    )
    print("| reason | pairs | precision | recall |\n| --- | --- | --- | --- |")
    for name in ("good", *REASONS):
        if wanted[name]:
            precision = f"{both[name] / found[name]:.3f}" if found[name] else "-"
            what = "(kept)" if name == "good" else name
            print(f"| {what} | {wanted[name]} | {precision} | {both[name] / wanted[name]:.3f} |")


def indiana(count: int) -> list[tuple[str, list[QaPair]]]:
    """(report, pairs by rules) of the first Indiana reports."""
    labeller, result = build_labeller("rules"), []
    for r in read_reports(fetch("indiana-reports") / "NLMCXR_reports.tgz")[:count]:
        study = Study(r.uid, r.uid, r.uid, "", "train", findings_text=r.findings, impression_text=r.impression)
        if report := report_text(study, "findings_and_impression"):
            result.append((report, rule_pairs(study, labeller.read(report).states)))
    return result


def ask(count: int, answers: Path, url: str | None, model: str) -> None:
    """Print what becomes of a chat LLM's answers about Indiana reports with a finding, drawn by their number."""
    labeller, studies = build_labeller("rules"), []
    for r in read_reports(fetch("indiana-reports") / "NLMCXR_reports.tgz"):
        study = Study(r.uid, r.uid, r.uid, "", "train", findings_text=r.findings, impression_text=r.impression)
        labels = labeller.read(report_text(study, "findings_and_impression")).states
        studies.append(dataclasses.replace(study, labels=labels))
    reports = reports_to_ask(studies, only_positive=True)
    reports = [reports[i] for i in stream(0, "ask").permutation(len(reports))[:count]]
    prompt, start = vqa_prompt(), time.process_time()
    with AnswerStore(answers) as store, TemporaryDirectory() as folder:
        client = ChatClient(ChatSettings(model=model, base_url=url), "cpu")
        client.answer_all(requests_of(prompt, reports), store, len(reports), "reports")
        counts = write_all(Path(folder) / "synthesis", reports, prompt, model, store)
        told = f"{store.spent.tokens_out:,} tokens in {time.process_time() - start:,.0f} CPU seconds of this process"
    print("\n".join([*counts.told(), f"kept by type: {dict(counts.types)}", told]))


def speed(made: list[tuple[str, list[QaPair]]]) -> None:
    """Print pairs checked a second on one core, from nothing remembered."""
    from llmcxr.synthesis import statements

    statements._said.cache_clear()
    statements._LABELLER._remembered.cache_clear()
    turned = [
        (r, [dataclasses.replace(p, answer=WRONG.get(p.answer, p.answer)) if k % 2 else p for k, p in enumerate(pairs)])
        for r, pairs in made
    ]
    verdicts, start = Counter[str](), time.process_time()
    for report, pairs in turned:
        verdicts.update(pair.reason or pair.verdict for pair in check_pairs(report, pairs))
    seconds = time.process_time() - start
    print(f"\n{verdicts.total():,} pairs of {len(made):,} Indiana reports: {verdicts.total() / seconds:,.0f} a second")
    print(f"(one core); {dict(verdicts.most_common())}")


def control(made: list[tuple[str, list[QaPair]]]) -> None:
    """Print what is answered blind before and after balance, and what other shares of the commonest answer would leave."""
    pairs = [pair for _, own in made for pair in own]
    print(
        "\nAnswered right without the image, of pairs by rules: from the question's words (by the commonest answer)\n"
    )
    head, *rows = Control.of(lambda: pairs, 0).table()
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print("\n| commonest answer at most | pairs | all | severity: pairs | right | location: pairs | right |")
    print(f"|{' --- |' * 7}")
    for most in (0.5, 2 / 3, 0.8):
        found = Control.of(lambda: pairs, 0, most)
        cells = [f"{most:.2f}", f"{found.pairs[1]:,}", f"{found.after['all'].by_question:.3f}"]
        for name in ("severity", "location"):
            cells += [f"{found.after[name].pairs:,}", f"{found.after[name].by_question:.3f}"]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=4000, help="Indiana reports for speed and control")
    parser.add_argument("--ask", type=int, help="Indiana reports that a chat LLM is asked about, instead of all else")
    parser.add_argument("--answers", type=Path, default=Path("vqa_answers.jsonl"), help="what it says; asked for once")
    parser.add_argument("--url", help="its server; none: a model in this process")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--mistakes", action="store_true", help="print the pairs judged wrongly, but for the last part")
    options = parser.parse_args()
    if options.ask:
        ask(options.ask, options.answers, options.url, options.model)
        return
    for name, parts in PARTS.items():
        quality(name, parts, options.mistakes)
    made = indiana(options.reports)
    speed(made)
    control(made)


if __name__ == "__main__":
    main()
