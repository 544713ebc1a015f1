"""Phantom radiographs: one chest CT, projected after random anatomy and the findings of a real report."""

from llmcxr.sources.phantom.anatomy import Case, case_for
from llmcxr.sources.phantom.atlas import Atlas, load_atlas
from llmcxr.sources.phantom.contact_sheet import contact_sheet, finding_sheet
from llmcxr.sources.phantom.projection import Rendering, render
from llmcxr.sources.phantom.reports import IndianaReport, parse_tag, read_reports
from llmcxr.sources.phantom.source import PhantomSettings, PhantomSource

__all__ = [
    "Atlas",
    "Case",
    "IndianaReport",
    "PhantomSettings",
    "PhantomSource",
    "Rendering",
    "case_for",
    "contact_sheet",
    "finding_sheet",
    "load_atlas",
    "parse_tag",
    "read_reports",
    "render",
]
