"""The dashboard: `streamlit run app.py`."""

from pathlib import Path

import streamlit as st

from bnviz.ui import (
    compare_page,
    distributions_page,
    frame,
    lab,
    look,
    method_page,
    paper_page,
    runs_page,
    sweeps_page,
)

ICON = Path(__file__).resolve().parent / "bnviz" / "assets" / "icon.svg"

st.set_page_config(page_title="bnviz", page_icon=str(ICON), layout="wide")
look.apply()
pages = {
    "lab": st.Page(lab.page, title="Lab", icon=":material/science:", default=True),
    "runs": st.Page(runs_page.page, title="Runs", icon=":material/table_rows:", url_path="runs"),
    "compare": st.Page(
        compare_page.page,
        title="Compare",
        icon=":material/stacked_line_chart:",
        url_path="compare",
    ),
    "distributions": st.Page(
        distributions_page.page,
        title="Distributions",
        icon=":material/waves:",
        url_path="distributions",
    ),
    "method": st.Page(
        method_page.page, title="Method", icon=":material/functions:", url_path="method"
    ),
    "sweeps": st.Page(
        sweeps_page.page, title="Sweeps", icon=":material/grid_on:", url_path="sweeps"
    ),
    "paper": st.Page(paper_page.page, title="Paper", icon=":material/article:", url_path="paper"),
}
st.session_state["pages"] = pages  # so that one page can lead to another
page = st.navigation(list(pages.values()), position="top")
with frame.checked_address(page.title):
    page.run()
