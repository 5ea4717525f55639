"""Measured ops against the fitted roofline, as a Plotly figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from app.render.tables import US_PER_S

if TYPE_CHECKING:
    from calibration.microbench.fit.profile_fit import OpPoint


def op_parity_figure(points: Sequence[OpPoint]) -> Any:
    """Measured over fitted time of each op; on the diagonal the fit is exact."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for op_class in dict.fromkeys(point.op_class for point in points):
        mine = [point for point in points if point.op_class is op_class]
        figure.add_scatter(
            x=[p.predicted_s * US_PER_S for p in mine],
            y=[p.measured_s * US_PER_S for p in mine],
            text=[p.label for p in mine],
            mode="markers",
            name=op_class.value,
        )
    ends = [min(p.predicted_s for p in points) * 1e6, max(p.predicted_s for p in points) * 1e6]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="fitted roofline", line={"color": "gray", "dash": "dash"})
    figure.update_xaxes(type="log", title="fitted roofline, us")
    figure.update_yaxes(type="log", title="measured, us")
    figure.update_layout(title="Ops measured alone against the fitted roofline", template="plotly_white")
    return figure
