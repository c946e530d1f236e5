"""From a sweep's records to tables, figures and one HTML page (`page.make_report`).

Nothing is imported here: a table needs no matplotlib.
"""
