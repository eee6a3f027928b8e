"""Reports: one self-contained HTML page about one intervention or several."""

from lineas.reporting.html import Content, page

__all__ = ["Content", "page"]
