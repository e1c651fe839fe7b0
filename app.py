"""The dashboard: `streamlit run app.py`."""

from pathlib import Path

import streamlit as st

from bnviz.ui import lab

ICON = Path(__file__).resolve().parent / "bnviz" / "assets" / "icon.svg"

st.set_page_config(page_title="bnviz", page_icon=str(ICON), layout="wide")
st.navigation([st.Page(lab.page, title="Lab", default=True)], position="hidden").run()
