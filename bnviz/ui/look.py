"""What Streamlit's theme cannot say: room, and contrast for those who see it badly."""

import streamlit as st

_CSS = """
<style>
.stMainBlockContainer { padding-top: 4.5rem; }
/* Streamlit's greys are below the 4.5 to 1 that WCAG 2 asks of small text. */
[data-testid="stCaptionContainer"] { color: inherit !important; opacity: 0.8; }
button[data-selected="true"] p { color: CanvasText; font-weight: 600; }
[data-testid="stSliderThumbValue"] p { color: CanvasText; }
</style>
"""


def apply() -> None:
    """Called once for every page."""
    st.html(_CSS)
