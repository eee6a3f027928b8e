"""The colours of the HTML report and of the plots."""

CURVES = ("#0068a8", "#c24e00", "#00785a", "#a8488f", "#856600", "#4a5568")
"""The colours of curves on white, after Okabe and Ito, for readers who see red and green alike."""
CURVES_IN_THE_DARK = ("#56b4e9", "#f4935a", "#3cc9a0", "#e59aca", "#e3bd2f", "#b9c2cf")
UNTOUCHED = "#888888"
"""The colour of the untouched model in plots."""
PAGE = {"ink": "#1d2430", "soft": "#5b6675", "paper": "#fff", "line": "#dfe4ea", "bar": "#3b82c4"}
"""The other colours of the page, by the name of their CSS variable."""
PAGE_IN_THE_DARK = {"ink": "#e6e9ef", "soft": "#9aa5b4", "paper": "#14181f", "line": "#2c3440", "bar": "#4f9ae0"}
