"""Dashboard, as Streamlit runs it: `moeplan app`."""

from __future__ import annotations

import streamlit as st

from app.views import plan

st.set_page_config(page_title="moeplan", page_icon="🧮", layout="wide")
plan.show()
