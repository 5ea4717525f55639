"""What changed between two profiles, in rates and times that a person can hold against a data sheet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from app.render.tables import simple_table
from hw_profiles.efficiency import ClassEfficiency, OpClass, operands_of
from hw_profiles.units import GB, NS, TFLOP, US

if TYPE_CHECKING:
    from hw_profiles.profile import HardwareProfile

SAME = 5e-4  # relative difference that four digits do not show
COLLECTIVES = (OpClass.ALL_REDUCE, OpClass.ALL_TO_ALL, OpClass.POINT_TO_POINT)
OVER_LINKS = (*COLLECTIVES, OpClass.MOE_FUSED)
PERCENT = 0.01  # of one
FAR = 2.0  # times more or less: changes beyond are told as a factor


class FigureChange(NamedTuple):
    """A figure of both profiles. part: op class, "machine" or "overheads"."""

    part: str
    figure: str
    before: float
    after: float


def comparison(before: HardwareProfile, after: HardwareProfile) -> RenderableType:
    """Every figure that differs; classes that one of them lacks by name."""
    said = [_heading(before, after)]
    changes = [change for change in _figures(before, after) if _differs(change)]
    old, new = before.efficiency.classes, after.efficiency.classes
    for label, classes in (("only in this", new.keys() - old.keys()), ("only in the other", old.keys() - new.keys())):
        if classes:
            said.append(f"Classes {label}: {', '.join(c.value for c in OpClass if c in classes)}.")
    if not changes:
        said.append("No figure that both have differs.")
        return Text("\n".join(said))
    table = simple_table("Of", "Figure", "Other", "This", "Change")
    table.columns[1].justify = "left"
    last = ""
    for part, figure, was, now in changes:
        change = f"{now - was:+.1f} points" if figure.endswith("%") else _change(was, now)
        table.add_row(part if part != last else "", figure, f"{was:.4g}", f"{now:.4g}", change)
        last = part
    return Group(Text("\n".join(said)), table)


def _change(was: float, now: float) -> str:
    """
    >>> _change(2.0, 2.1), _change(2.0, 9.0), _change(0.0, 1.0)
    ('+5.0%', 'x 4.5', '-')
    """
    if not was:
        return "-"
    return f"{now / was - 1:+.1%}" if was / FAR <= now <= was * FAR else f"x {now / was:.3g}"


def _heading(before: HardwareProfile, after: HardwareProfile) -> str:
    names = [f"{one.name}@{one.stack}" for one in (before, after)]
    text = f"Other: {names[0]}, {before.efficiency.provenance or before.efficiency.origin}."
    return text if names[0] == names[1] else f"{text}\nNot the same: this is {names[1]}."


def _differs(change: FigureChange) -> bool:
    return abs(change.after - change.before) > SAME * max(abs(change.before), abs(change.after))


def _figures(before: HardwareProfile, after: HardwareProfile) -> Iterator[FigureChange]:
    for dtype in after.accelerator.matrix:
        yield FigureChange("machine", f"{dtype} peak, TFLOP/s", before.peaks[dtype] / TFLOP, after.peaks[dtype] / TFLOP)
    yield FigureChange("machine", "memory, GB/s", before.memory_bandwidth / GB, after.memory_bandwidth / GB)
    yield FigureChange("machine", "link, GB/s", before.scale_up_bandwidth / GB, after.scale_up_bandwidth / GB)
    old, new = before.efficiency, after.efficiency
    yield FigureChange("overheads", "of a step, us", old.step_overhead_s / US, new.step_overhead_s / US)
    yield FigureChange("overheads", "of a kernel, us", old.kernel_overhead_s / US, new.kernel_overhead_s / US)
    yield FigureChange("overheads", "of a request, us", old.request_overhead_s / US, new.request_overhead_s / US)
    yield FigureChange(
        "overheads", "memory that may be filled, %", *_percent(old.memory_utilisation, new.memory_utilisation)
    )
    for op_class in OpClass:
        if op_class in old.classes and op_class in new.classes:
            rates = old.classes[op_class], new.classes[op_class]
            if rates[0].assumed and rates[1].assumed and rates[0] == rates[1]:
                continue  # the same guess, on other peaks
            yield from _class_figures(op_class, before, after, *rates)
    for kind, error in new.held_out_error.items():
        if kind in old.held_out_error:
            yield FigureChange("held-out error", f"{kind}, %", *_percent(old.held_out_error[kind], error))


def _class_figures(
    op_class: OpClass, before: HardwareProfile, after: HardwareProfile, was: ClassEfficiency, now: ClassEfficiency
) -> Iterator[FigureChange]:
    name = op_class.value
    if op_class in OVER_LINKS:
        link = [one.network_fraction * hw.scale_up_bandwidth / GB for one, hw in ((was, before), (now, after))]
        yield FigureChange(name, "link, GB/s", *link)
    if op_class not in COLLECTIVES:
        yield from _work_figures(name, before, after, was, now)
    yield FigureChange(name, "floor, us", was.latency_s / US, now.latency_s / US)
    for kernel in sorted({*was.depth_s_by, *now.depth_s_by}) or [""]:
        figure = f"element of a sum under {kernel}, ns" if kernel else "element of a sum, ns"
        yield FigureChange(name, figure, was.depth_s_of(kernel) / NS, now.depth_s_of(kernel) / NS)
    yield FigureChange(name, "exponent", was.exponent, now.exponent)
    yield FigureChange(name, "rows of a ragged tile", was.tile_rows, now.tile_rows)
    yield FigureChange(name, "factor of short rows", was.short_row_factor, now.short_row_factor)
    for kernel in sorted({*was.reread_share_by, *now.reread_share_by}):
        yield FigureChange(
            name, f"weights read again under {kernel}, %", *_percent(*(r.reread_share_of(kernel) for r in (was, now)))
        )
    yield FigureChange(name, "sigma of log time", was.residual_sigma, now.residual_sigma)


def _work_figures(
    name: str, before: HardwareProfile, after: HardwareProfile, was: ClassEfficiency, now: ClassEfficiency
) -> Iterator[FigureChange]:
    for kernel in sorted({*was.matrix_fraction_by, *now.matrix_fraction_by}):
        dtype = operands_of(kernel)
        if dtype not in after.peaks:
            continue
        rates = [
            one.matrix_fraction_of(kernel) * hardware.peaks[dtype] / TFLOP
            for one, hardware in ((was, before), (now, after))
        ]
        yield FigureChange(name, f"{kernel}, TFLOP/s", *rates)
    if not (was.matrix_fraction_by or now.matrix_fraction_by):
        yield FigureChange(name, "matrix, % of peak", *_percent(was.matrix_fraction, now.matrix_fraction))
    sides = ((was, before), (now, after))
    kernels = sorted({*was.memory_fraction_by, *now.memory_fraction_by})
    for kernel in kernels:
        memory = [one.memory_fraction_of(kernel) * hw.memory_bandwidth / GB for one, hw in sides]
        yield FigureChange(name, f"memory under {kernel or 'no product'}, GB/s", *memory)
    if not kernels:
        memory = [one.memory_fraction * hw.memory_bandwidth / GB for one, hw in sides]
        yield FigureChange(name, "memory, GB/s", *memory)


def _percent(before: float, after: float) -> tuple[float, float]:
    return before / PERCENT, after / PERCENT
