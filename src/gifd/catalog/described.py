"""What an object says of itself: the first paragraph of its docstring, and its source."""

from __future__ import annotations

import inspect
import re


def summary(thing: object) -> str:
    """The first paragraph, on one line, without its full stop."""
    return _paragraphs(thing)[0].removesuffix(".")


def reference(thing: object) -> str:
    """Who and when of what follows 'Source:', as 'Yin et al., CVPR 2021'; empty without one."""
    for paragraph in _paragraphs(thing):
        if paragraph.startswith("Source:"):
            return _who_and_when(paragraph.removeprefix("Source:"))
    return ""


def _who_and_when(source: str) -> str:
    """Of a source without a year, nothing."""
    who, *clauses = source.strip().split(", ")
    dated = (re.match(r".*?\b(19|20)\d\d\b", clause) for clause in clauses)
    when = next((found.group() for found in dated if found), "")
    return f"{who}, {when}" if when else ""


def _paragraphs(thing: object) -> list[str]:
    return [" ".join(part.split()) for part in (inspect.getdoc(thing) or "").split("\n\n")]
