"""``report.html``: one page with pictures for a run, or for several side by side."""

from ssm_metarl.evaluation.report.page import render, write_pictures, write_report

__all__ = ["render", "write_pictures", "write_report"]
