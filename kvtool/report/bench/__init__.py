"""The report of `kvtool bench`: tables, findings, charts, page."""
