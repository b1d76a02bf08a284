"""Descriptions from docstrings: the first paragraph, and the source."""

from __future__ import annotations

import inspect
import re


def summary(thing: object) -> str:
    """The first paragraph, on one line, without the final full stop."""
    return _paragraphs(thing)[0].removesuffix(".")


def reference(thing: object) -> str:
    """Authors, venue and year after 'Source:', e.g. 'Yin et al., CVPR 2021'; else empty."""
    for paragraph in _paragraphs(thing):
        if paragraph.startswith("Source:"):
            return _who_and_when(paragraph.removeprefix("Source:"))
    return ""


def _who_and_when(source: str) -> str:
    """Authors, venue and year of a source; empty if it has no year."""
    who, *clauses = source.strip().split(", ")
    dated = (re.match(r".*?\b(19|20)\d\d\b", clause) for clause in clauses)
    when = next((found.group() for found in dated if found), "")
    return f"{who}, {when}" if when else ""


def _paragraphs(thing: object) -> list[str]:
    return [" ".join(part.split()) for part in (inspect.getdoc(thing) or "").split("\n\n")]
