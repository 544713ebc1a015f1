"""Small trees in the layouts in which data sets are published, of invented patients; tests of sources and of whole runs
read them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

OBSERVATIONS = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,No Finding,"
    "Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
ILL = "Small left pleural effusion. The heart is enlarged."
WELL = "No pleural effusion. The heart is normal in size."


def write(path: Path, text: str | bytes) -> None:
    """A file with its folders; .gz is packed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def lines(head: str, rows: Iterable[Iterable[object]]) -> str:
    """A CSV file's text."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head.split(","))
    writer.writerows(rows)
    return stream.getvalue()


def picture(path: Path, seed: int, side: tuple[int, int] = (40, 36)) -> None:
    """Noise, darker below; every seed has its own."""
    pixels = np.random.default_rng(seed).integers(0, 255, side).astype(np.uint8)
    pixels[side[0] // 2 :] //= 1 + seed % 2
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mimic_report(text: str, headings: bool = True) -> str:
    """A report as MIMIC-CXR has them: indented, with blank lines of one space."""
    head = "                                 FINAL REPORT\n EXAMINATION:  CHEST (PORTABLE AP)\n \n INDICATION:  ___F with cough.\n \n"
    body = (
        f" FINDINGS: \n \n {text}\n \n IMPRESSION: \n \n {text}\n" if headings else f" COMPARISON:  ___.\n \n {text}\n"
    )
    return head + body


class Mimic:
    """MIMIC-CXR-JPG and its reports. Change the rows, then `write`."""

    def __init__(self, patients: int = 0) -> None:
        # dicom, study, patient, split, ViewPosition, StudyDate, StudyTime, the view in words
        self.images: list[list[str]] = []
        self.reports: dict[str, str] = {}  # study -> text
        self.labels: dict[str, dict[str, float]] = {}  # study -> observation -> state
        for k in range(patients):
            split = "train" if k < 0.6 * patients else "validate" if k < 0.75 * patients else "test"
            patient, study = str(10000032 + k), str(50414267 + k)
            self.add(f"{k:08x}-aaaa", study, patient, split, text=ILL if k % 2 else WELL)
            self.labels[study] = {"Pleural Effusion": float(k % 2), "Cardiomegaly": float(k % 2)}

    def add(
        self, image: str, study: str, patient: str, split: str = "train", view: str = "PA", day: str = "21800506",
        clock: str = "213014.531", words: str = "", text: str | None = None,
    ) -> None:  # fmt: skip
        """An image, and its study's report where `text` is given."""
        self.images.append([image, study, patient, split, view, day, clock, words])
        if text is not None:
            self.reports[study] = mimic_report(text)

    def write(
        self,
        root: Path,
        gz: bool = True,
        wrapper: str = "",
        floats: bool = False,
        suffix: str = ".jpg",
        version: str = "2.0.0",
    ) -> None:
        """`jpg/` and `mimic-cxr-reports.zip` in `root`; ids as 10000032.0 where `floats`."""
        ids, more = (lambda i: f"{i}.0") if floats else str, ".gz" if gz else ""
        table = root / "jpg" / f"mimic-cxr-{version}-"
        rows = [[d, ids(s), ids(p), split] for d, s, p, split, *_ in self.images]
        write(Path(f"{table}split.csv{more}"), lines("dicom_id,study_id,subject_id,split", rows))
        head = (
            "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
            "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
        )
        meta = [
            [d, ids(p), ids(s), "CHEST (PA AND LAT)", v, 3056, 2544, day, clock, "CHEST (PA AND LAT)", words, "Erect"]
            for d, s, p, _, v, day, clock, words in self.images
        ]
        write(Path(f"{table}metadata.csv{more}"), lines(head, meta))
        patients = {s: p for _, s, p, *_ in self.images}
        found = [
            [ids(patients.get(s, "19999999")), ids(s), *(states.get(o, "") for o in OBSERVATIONS.split(","))]
            for s, states in self.labels.items()
        ]
        for labeller in ("chexpert", "negbio"):
            write(Path(f"{table}{labeller}.csv{more}"), lines(f"subject_id,study_id,{OBSERVATIONS}", found))
        for k, (image, study, patient, *_) in enumerate(self.images):
            path = root / "jpg" / "files" / f"p{patient[:2]}" / f"p{patient}" / f"s{study}" / f"{image}{suffix}"
            if suffix == ".dcm":
                dicom(path, k)
            else:
                picture(path, k)
        with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
            for study, text in self.reports.items():
                patient = patients.get(study, "19999999")
                archive.writestr(f"{wrapper}files/p{patient[:2]}/p{patient}/s{study}.txt", text)


def openi_xml(uid: int, findings: str, impression: str, images: Iterable[str]) -> str:
    """A report as OpenI publishes it."""
    pictures = "".join(f'<parentImage id="{name}"><figureId>F1</figureId></parentImage>' for name in images)
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><meta type="rr"/><uId id="CXR{uid}"/><MedlineCitation><Article><Abstract>'
        f'<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">XXXX-year-old with cough</AbstractText>'
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">{impression}</AbstractText>'
        f"</Abstract></Article></MedlineCitation><MeSH><major>normal</major></MeSH>{pictures}</eCitation>"
    )


def openi(root: Path, studies: int, kaggle: bool = False) -> None:
    """Reports and PNG files of `studies`, one frontal and one lateral each; as on Kaggle with CSV files, else as
    XML."""
    projections, reports = [], []
    for uid in range(1, studies + 1):
        names = [f"{uid}_IM-{uid:04d}-4001", f"{uid}_IM-{uid:04d}-3001"]
        text = ILL if uid % 2 else WELL
        reports.append(
            [uid, "normal", "normal", "Xray Chest PA and Lateral", "Cough", "None.", text, "" if uid % 3 else text]
        )
        if not kaggle:
            write(root / "ecgen-radiology" / f"{uid}.xml", openi_xml(uid, text, text, [f"CXR{uid}_{n}" for n in names]))
        for k, (name, view) in enumerate(zip(names, ("Frontal", "Lateral"), strict=True)):
            projections.append([uid, f"{name}.dcm.png", view])
            folder = root / "images" / "images_normalized" if kaggle else root / "NLMCXR_png"
            picture(folder / (f"{name}.dcm.png" if kaggle else f"CXR{uid}_{name}.png"), 2 * uid + k)
    write(root / "indiana_projections.csv", lines("uid,filename,projection", projections))
    if kaggle:
        head = "uid,MeSH,Problems,image,indication,comparison,findings,impression"
        write(root / "indiana_reports.csv", lines(head, reports))


PLUS = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,section_narrative,"
    "section_clinical_history,section_history,section_comparison,section_technique,section_procedure_comments,section_findings,"
    "section_impression,section_end_of_impression,section_summary,section_accession_number,age,sex,race,ethnicity,interpreter_needed,"
    "insurance_type,recent_bmi,deceased,split"
)


def chexpert_plus(root: Path, patients: int, labels: str = "impression") -> list[dict[str, str]]:
    """CheXpert Plus, a frontal film of each patient; the last quarter is `valid`. The rows of its table."""
    rows, states = [], []
    for k in range(patients):
        split = "valid" if k >= 0.75 * patients else "train"
        stem = f"{split}/patient{k:05d}/study1/view1_frontal"
        text = ILL if k % 2 else WELL
        row = dict.fromkeys(PLUS.split(","), "") | {"path_to_image": f"{stem}.jpg", "path_to_dcm": f"{stem}.dcm"}
        row |= {"frontal_lateral": "Frontal", "ap_pa": "AP", "deid_patient_id": f"patient{k:05d}", "split": split}
        row |= {"patient_report_date_order": "1", "report": f"NARRATIVE:\n{text}\n\nIMPRESSION:\n\n1. {text}\n"}
        row |= {"section_narrative": text, "section_findings": text if k % 3 else "", "section_impression": text}
        rows.append(row)
        known = {"Pleural Effusion": float(k % 2), "Cardiomegaly": float(k % 2)}
        states.append({"path_to_image": f"{stem}.jpg"} | {o: known.get(o) for o in OBSERVATIONS.split(",")})
        picture(root / "PNG" / f"{stem}.png", k)
    write(root / "df_chexpert_plus_240401.csv", lines(PLUS, [row.values() for row in rows]))
    if labels:
        write(root / "chexbert_labels" / f"{labels}_fixed.json", "\n".join(map(json.dumps, states)) + "\n")
    return rows


def dicom(path: Path, seed: int, **tags: object) -> str:
    """A computed radiograph with these tags; its SOPInstanceUID."""
    meta = FileMetaDataset()
    uid = str(tags.pop("SOPInstanceUID", generate_uid(entropy_srcs=[str(path)])))
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ComputedRadiographyImageStorage, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    pixels = np.random.default_rng(seed).integers(0, 4095, (40, 36)).astype(np.uint16)
    pixels[20:] //= 1 + seed % 2
    values = {
        "SOPClassUID": ComputedRadiographyImageStorage, "SOPInstanceUID": uid, "Modality": "CR", "Rows": 40, "Columns": 36,
        "PatientID": "p1", "StudyInstanceUID": f"1.2.3.{seed + 1}", "SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": 12,
        "HighBit": 11, "PixelRepresentation": 0, "PhotometricInterpretation": "MONOCHROME2", "PixelData": pixels.tobytes(),
    }  # fmt: skip
    for name, value in (values | tags).items():
        if value is not None:
            setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return uid


def dicom_folder(root: Path, patients: int) -> None:
    """One frontal CR file a patient without a suffix, and a table of reports by accession number."""
    rows = []
    for k in range(patients):
        dicom(root / "export" / f"A{k % 3}" / f"{k:08d}", k, PatientID=f"p{k}", AccessionNumber=f"47{k:02d}", ViewPosition="PA",
              StudyDate="20190402", StudyTime="0930")  # fmt: skip
        text = ILL if k % 2 else WELL
        split = "train" if k < 0.6 * patients else "validate" if k < 0.75 * patients else "test"
        rows.append([f"47{k:02d}", f"FINDINGS: {text} IMPRESSION: {text}", split])
    write(root / "reports.csv", lines("accession,report,use", rows))
