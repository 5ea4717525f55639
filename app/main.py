"""Dashboard, as Streamlit runs it: `moeplan app`."""

from __future__ import annotations

# Worker processes of the planner import this file under another name: they must not draw, nor load Streamlit.
if __name__ == "__main__":
    import streamlit as st

    from app.views import plan

    st.set_page_config(page_title="moeplan", page_icon="🧮", layout="wide")
    plan.show()
