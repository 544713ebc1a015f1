"""The results page: one whole file, nothing fetched, nothing unescaped, nothing that crashes for want of a number."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from llmcxr.evaluation.scoring import score_table
from llmcxr.pages.results import (
    DrawingCard,
    PageContent,
    QuestionRow,
    Reconstruction,
    ReportCard,
    glance,
    write_page,
)

HOSTILE = "<script>alert('x')</script> & \"quotes\""
SUMMARY = {
    "report": {"micro_f1": 0.412, "macro_f1": 0.2, "baseline_micro_f1": 0.264, "reference_micro_f1": 0.917, "n": 200},
    "vqa": {
        "accuracy": 0.743,
        "majority_accuracy": 0.655,
        "auroc": 0.731,
        "auroc_low": 0.694,
        "auroc_high": 0.768,
        "auroc_shuffled": 0.503,
        "auroc_classifier": 0.921,
        "n": 1240,
        "calibration_error": 0.017,
        "calibration_error_raw": 0.101,
        "reliability": {"raw": [[0.1, 0.0, 40], [0.9, 0.5, 40]], "calibrated": [[0.0, 0.0, 40], [0.5, 0.5, 40]]},
    },
    "image": {
        "auroc": 0.662,
        "auroc_low": None,
        "auroc_high": float("nan"),
        "auroc_real": 0.871,
        "auroc_shuffled": 0.498,
        "n": 200,
    },
    "image_tokenizer": {"codebook_use": 0.93, "l1": 0.034, "auroc_original": 0.871, "auroc_reconstruction": 0.822},
    "language": {"perplexity_ratio": None},
}
VOID = {"meta", "img", "br", "hr", "line", "rect", "circle", "path", "polyline"}  # the SVG ones are self-closed


class Reader(HTMLParser):
    """Collects elements and text, and insists that what is opened is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def read(tmp_path, content):
    write_page(tmp_path / "report.html", content)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(source)
    reader.close()
    assert reader.open == []
    return source, reader


def full_content(text="Small effusion."):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (64, 64), dtype=np.uint8)
    curve = [(step, step * 1000, 3 / step) for step in range(1, 400)]
    row = {"name": text, "original": 0.91, "reconstruction": 0.82, "drawn": None, "positives": 12}
    findings = [row, {"name": "never measured", "positives": 0}]
    return PageContent(
        title=text,
        facts={"recipe": text},
        summary=SUMMARY
        | {"protocol": {"test_images": 40, "test_patients": 7}}
        | {"notes": [text], "findings": findings, "not_measured": {"image.auroc_asked": f"reason {text}"}},
        reconstructions=[Reconstruction(image, image / 255.0, text, 0.0123)],
        reports=[ReportCard(image, text, text, ["right finding"], ["missed finding"], ["invented finding"], text)],
        drawings=[DrawingCard(text, image, [image, image], text, image), DrawingCard(text, None, [image])],
        overview=Image.fromarray(image),
        questions=[QuestionRow(text, text, text, True, image), QuestionRow(text, text, text, False)],
        train_loss={text: curve, "empty": []},
        unseen_loss={text: [(100, 1e5, 0.2), (300, 3e5, float("nan"))]},
        stage_changes=[250],
        data=data_of(text),
        cohorts={
            "stage1": {
                "rules": [RULES[0], RULES[1] | {"rule": text}],
                "left_out": {text: 7},
                "too_long": {"cxr_to_report, cut": 12},
            }
        },
        remarks=[text],
        next_steps=[text],
    )


RULES = [{"rule": "all", "images": 1234, "patients": 9}, {"rule": "views PA", "images": 1200, "patients": 8}]


def data_of(text):
    splits = {"train": 1000, "validate": 150, "test": 50}
    return {
        "rules": RULES,
        "studies": splits,
        "patients": splits,
        "left_out": {"few": 3, text: 31},
        "noted": {"odd": 5},
        "examples": {text: [text], "odd": ["an odd one"]},
    }


def test_page_is_well_formed_and_has_every_section(tmp_path):
    source, reader = read(tmp_path, full_content())
    anchors = {a["href"][1:] for a in reader.all("a")}
    assert anchors == {s["id"] for s in reader.all("section")}
    assert len(anchors) == 11
    assert "For research only" in reader.text
    assert "Simulated radiographs" in reader.text
    assert "Images marked as drawn are synthetic" in reader.text
    assert source.count("What this shows.") == 11
    for shown in (
        "0.412",
        "0.264",
        "0.694 to 0.768",
        "L1 0.012",
        "reason Small effusion.",
        "stage 2",
        "unseen patients 0.200",
    ):
        assert shown in reader.text, shown
    for symbol, kind in (("✓", "right"), ("−", "missed"), ("+", "invented")):
        assert f"{symbol} {kind} finding {kind}" in reader.text


def test_nothing_is_fetched_and_nothing_runs(tmp_path):
    source, reader = read(tmp_path, full_content())
    for tag, attributes in reader.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "xlink:href", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    assert not re.search(r"https?://|url\(|@import", source)


def test_text_is_escaped(tmp_path):
    source, reader = read(tmp_path, full_content(HOSTILE))
    assert "<script" not in source
    assert reader.text.count(HOSTILE) > 12


def test_images_are_inside(tmp_path):
    _, reader = read(tmp_path, full_content())
    overview, *images = reader.all("img")
    assert "radiographs, their reconstructions, and drawings" in overview["alt"]
    assert len(images) == 2 + 1 + 5 + 1
    original = full_content().reports[0].image
    for attributes in images:
        data = base64.b64decode(attributes["src"].removeprefix("data:image/webp;base64,"))
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"), float)
        assert pixels.shape == (64, 64)
        assert np.corrcoef(pixels.ravel(), original.ravel())[0, 1] > 0.9
        assert attributes["alt"]


def test_the_page_says_which_images_and_labels_took_part(tmp_path):
    protocol = {"test_images": 3, "left_out": {"view LATERAL": 1200}, "unknown_labels": "negative"}
    _, reader = read(tmp_path, PageContent("t", summary={"protocol": protocol}))
    said = (
        "Test images left out: 1,200 view LATERAL. Labels that the data does not give count as absent; uncertain ones "
    )
    assert said + "take no part." in reader.text
    _, reader = read(tmp_path, PageContent("t", summary={"protocol": protocol | {"uncertain_labels": "positive"}}))
    assert said + "count as present." in reader.text


def test_the_page_says_what_took_part_and_why_the_rest_did_not(tmp_path):
    _, reader = read(tmp_path, full_content("no text"))
    rows = re.sub(r"\s+", " ", reader.text.split("after the rule")[1].split("odd 5")[0].replace("\n", " "))
    for name, images, patients in (
        ("all", "1,234", 9), ("views PA", "1,200", 8), ("training", "1,000", "1,000"), ("validation", 150, 150),
        ("test", 50, 50), ("stage1: no text", "1,200", 8), ("measured", 40, 7),
    ):  # fmt: skip
        assert f"{name}{images}{patients}" in rows
    assert rows.index("no text31no text") < rows.index("few3") < rows.index("stage1: no text7")
    assert "stage1, examples longer than tuning.max_tokens: cxr_to_report, cut12" in rows
    assert "odd5an odd one" in reader.text


def test_a_part_that_is_empty_says_why(tmp_path):
    """Escaped: names of the data's own stand in reasons."""
    missing = {"report.micro_f1": HOSTILE, "vqa.accuracy": "there are no questions", "image.auroc": "no reports"}
    source, reader = read(tmp_path, PageContent("t", summary={"not_measured": missing}))
    assert f"Not measured: {HOSTILE}." in reader.text and "<script" not in source
    assert (
        "Not measured: there are no questions." in reader.text and reader.text.count("Not measured: no reports.") == 2
    )


def test_a_report_that_could_not_be_compared_is_not_called_right(tmp_path):
    image = np.zeros((8, 8), np.uint8)
    cards = [ReportCard(image, "a", "b", unread="the labeller knows none"), ReportCard(image, "a", "b")]
    _, reader = read(tmp_path, PageContent("t", reports=cards))
    assert reader.text.count("findings not compared: the labeller knows none") == 1
    assert reader.text.count("no finding is labelled here, and none is stated") == 1


def test_a_score_that_falls_short_says_so_on_its_card(tmp_path):
    image = {"auroc": 0.6, "auroc_low": 0.55, "auroc_high": 0.7, "auroc_shuffled": 0.795, "auroc_real": 0.5, "n": 9}
    page = PageContent("t", summary={"image": image, "vqa": SUMMARY["vqa"]})
    _, reader = read(tmp_path, page)
    card = reader.text.split("Drawn images, AUROC")[1].split("n = 9")[0]
    assert "⚠ worse than the baseline" in card and "⚠ the baseline reaches the ceiling" in card
    good = reader.text.split("Questions, AUROC of p(yes)")[1].split("Findings, calibration error")[0]
    assert "⚠" not in good


def test_an_empty_run_says_so(tmp_path):
    _, reader = read(tmp_path, PageContent("Nothing yet", simulated=False))
    assert reader.text.count("Not measured: not in this run.") == 6
    assert reader.text.count("Not known of this run.") == reader.text.count("Nothing was trained in this run.") == 1
    assert "Simulated radiographs" not in reader.text and "under the same terms" in reader.text
    assert reader.text.count("not measured") >= 9


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"report": None},
        {"vqa": {"accuracy": "0.5"}},
        {"image": {"auroc": float("inf")}},
        {"report": {"micro_f1": True}},
    ],
)
def test_odd_summaries_do_not_crash(tmp_path, summary):
    _, reader = read(tmp_path, PageContent("odd", summary=summary))
    assert reader.text.count("not measured") >= 9
    assert score_table(summary).count("not measured") == score_table({}).count("not measured")


def test_score_table():
    lines = score_table(SUMMARY).splitlines()
    assert lines[0].split() == ["score", "model", "baseline", "ceiling", "n"]
    rows = {line.split("  ")[0]: line.split("  ", 1)[1].split() for line in lines[2:]}
    assert rows["Report findings, micro-F1"] == ["0.412", "0.264", "0.917", "200"]
    assert rows["Questions, accuracy"] == ["0.743", "0.655", "1.000", "1240"]
    assert rows["Questions, AUROC of p(yes)"] == ["0.731", "(0.694", "to", "0.768)", "0.503", "0.921"]
    assert rows["Drawn images, AUROC"] == ["0.662", "0.498", "0.871", "200"]
    assert rows["Language, perplexity ratio"] == ["not", "measured", "-", "1.000"]


def test_curves_are_drawn_to_scale(tmp_path):
    content = PageContent("curves", unseen_loss={"report": [(0, 0, 2.0), (50, 5, 1.5), (100, 10, 1.0)]})
    source, _ = read(tmp_path, content)
    points = re.search(r'<polyline class="unseen" points="([^"]+)"', source).group(1)
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, p.split(","))) for p in points.split()]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y1 - y0 > 0  # the loss falls, and y grows downward
    assert y1 - y0 == pytest.approx(y2 - y1, abs=2.0)


def test_reliability_is_drawn_to_scale(tmp_path):
    page, _ = read(tmp_path, PageContent("run", summary=SUMMARY))
    assert "p(yes) as the model answers" in page and page.count('<figure class="panel square">') == 1
    raw, calibrated = re.findall(r'<polyline class="(?:train|unseen)" points="([^"]*)"', page.split("Reliability")[1])
    # x from 38 (p = 0) to 250, y from 220 (never) up to 8; what is calibrated lies on the diagonal.
    assert raw == "59.2,220.0 228.8,114.0" and calibrated == "38.0,220.0 144.0,114.0"
    assert "Reliability" not in read(tmp_path, PageContent("run", summary={"vqa": {"reliability": {}}}))[0]


def test_language_after_each_stage(tmp_path):
    trace = [
        {"after": "base", "perplexity": 20.0, "perplexity_ratio": 1.0, "instruction_loss": 0.5},
        {"after": HOSTILE, "perplexity": 25.0, "perplexity_ratio": 1.25, "instruction_loss": None},
    ]
    write_page(tmp_path / "p.html", PageContent("t", summary={"language": {"trace": trace}}))
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert '<tr><th scope="row">base</th><td>20.000</td><td>1.000</td><td>0.500</td></tr>' in page
    assert "</th><td>25.000</td><td>1.250</td><td>not measured</td></tr>" in page and "<script" not in page
    write_page(tmp_path / "q.html", PageContent("t", summary={"language": {"perplexity_ratio": 1.0}}))
    assert '<table class="language">' not in (tmp_path / "q.html").read_text(encoding="utf-8")


def test_the_glance_shows_patients_one_a_column():
    shades = [np.full((32, 32), v, np.uint8) for v in (250, 150, 60)]
    whole = DrawingCard("a report", shades[0], [shades[2], shades[0]], "pleural effusion", shades[1])
    sheet = glance([DrawingCard("text alone", None, [shades[2]]), whole, whole, whole], columns=2, size=40)
    assert sheet.width == 2 * 40 + 4  # the card without a radiograph is left out, and so is the third with one
    for row, shade in enumerate((250, 150, 60)):
        for column in range(2):
            assert sheet.getpixel((column * 44 + 20, row * 44 + 20)) == shade
    pixels = np.asarray(sheet)
    assert pixels[3 * 44 :].max() > 100  # the caption
    assert pixels[2 * 44 : 3 * 44, 44:].max() > 200  # the mark on what was drawn
    assert (pixels[44:84, 44:84] == 150).all()  # and on nothing else
    assert not (pixels[44:84, :40] == 150).all()  # the first column names the rows
    assert glance([DrawingCard("text alone", None, [shades[2]])]) is None
