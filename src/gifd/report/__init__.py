"""Reports: pictures and pages, made from a store alone."""

from gifd.report.html import write_report
from gifd.report.strip import draw_strip

__all__ = ["draw_strip", "write_report"]
