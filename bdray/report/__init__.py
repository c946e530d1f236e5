"""From a sweep's records to tables, figures and one HTML page."""

from bdray.report.page import Report, SweepDescription, make_report

__all__ = ["Report", "SweepDescription", "make_report"]
