"""From a sweep's records to tables, figures and one HTML page."""

from bdray.report.figures import COLUMN, TEXT
from bdray.report.page import Report, SweepDescription, make_report
from bdray.report.searching import SearchView

__all__ = ["COLUMN", "TEXT", "Report", "SearchView", "SweepDescription", "make_report"]
