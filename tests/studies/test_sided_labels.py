"""Labels on either side: known, unknown, and for which findings there are any."""

import numpy as np

from llmcxr.studies.findings import Finding
from llmcxr.studies.study import Study, label_matrix, sided_labels

FINDINGS = ("nodule", "cardiomegaly", "edema")


def study(number: int, labels: dict[str, int], *truth: Finding) -> Study:
    name = f"{number}"
    return Study(name, name, name, f"{name}.png", "train", labels=labels, truth=truth)


def test_a_finding_is_on_its_side_and_not_on_the_other():
    absent = dict.fromkeys(FINDINGS, 0)
    studies = [
        study(0, absent),
        study(1, absent | {"nodule": 1}, Finding("nodule", "left")),
        study(2, absent | {"nodule": 1, "edema": 1}, Finding("nodule", "right"), Finding("edema", "both")),
        study(3, absent | {"nodule": 1}, Finding("nodule", "both")),
        study(4, absent | {"nodule": 1}, Finding("nodule", "left"), Finding("nodule", "right", kind="x")),
        study(5, absent | {"nodule": 1}, Finding("nodule")),  # somewhere
        study(6, absent | {"nodule": 1}, Finding("nodule", "left"), Finding("nodule")),
        study(7, absent | {"nodule": 1, "cardiomegaly": 1}),  # labels alone: no side is known
        study(8, {"cardiomegaly": 0, "edema": -1}),  # unknown
    ]
    names, labels = sided_labels(studies, FINDINGS)
    assert names == (*FINDINGS, "left nodule", "right nodule")  # an edema is never on one side alone
    np.testing.assert_array_equal(labels[:, :3], label_matrix(studies, FINDINGS))
    nan = np.nan
    expected = [[0, 0], [1, 0], [0, 1], [1, 1], [1, 1], [nan, nan], [nan, nan], [nan, nan], [nan, nan]]
    np.testing.assert_array_equal(labels[:, 3:], expected)
    assert labels.dtype == np.float32


def test_without_known_sides_there_are_the_findings_alone():
    studies = [study(0, {"nodule": 1}), study(1, {"nodule": 0}), study(2, {"nodule": 1}, Finding("nodule", "left"))]
    names, labels = sided_labels(studies, ("nodule",))
    assert names == ("nodule",) and labels.shape == (3, 1)
