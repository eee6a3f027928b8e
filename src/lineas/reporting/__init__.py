"""Reports: one self-contained HTML page about one intervention or several; tables, plots and grids of pictures."""

from lineas.reporting.html import Content, page
from lineas.reporting.report import report

__all__ = ["Content", "page", "report"]
