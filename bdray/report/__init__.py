"""From a sweep's records to tables, figures and one HTML page."""

from bdray.report.page import Report, SweepDescription, make_report
from bdray.report.searching import SearchView

__all__ = ["Report", "SearchView", "SweepDescription", "make_report"]
