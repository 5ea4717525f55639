"""One accelerator under one software stack, in SI units: what the simulator computes with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date

from hw_profiles.efficiency import ORIGINS, Efficiency
from hw_profiles.loading import CatalogError
from hw_profiles.power import LOWEST_CAP, PowerLaw, clock_under_cap, power_law
from hw_profiles.schema import Accelerator, Convention, Dtype, Price, Sourced, to_si
from hw_profiles.units import human_rate

# A matrix type that a part lacks runs at the next wider type it has (operands are converted on the way in).
WIDER: dict[Dtype, tuple[Dtype, ...]] = {
    "fp4": ("fp4", "fp8", "bf16"),
    "fp8": ("fp8", "bf16"),
    "int8": ("int8", "bf16"),
    "bf16": ("bf16",),
    "tf32": ("tf32", "fp32"),
    "fp32": ("fp32",),
}
NARROW: tuple[Dtype, ...] = ("fp8", "fp4")
# Where no fp32 figure is published: vector fp32 is 1/4 to 1/31 of dense bf16 over the catalogue, 1/16 on A100. [-]
FP32_SHARE_OF_BF16 = 1 / 16
# Links that no source gives for a part: one 400 Gbit/s NIC each is what most parts here ship with, PCIe 4 x16
# is the slowest host link among them. [B/s]
DEFAULT_SCALE_OUT_BANDWIDTH = 50e9
DEFAULT_HOST_BANDWIDTH = 32e9

# Which price stands in for a missing one: the nearest in meaning first (ownership for ownership, what a
# tenant pays for what a tenant pays).
PRICE_FALLBACK: dict[Convention, tuple[Convention, ...]] = {
    "hyperscaler_ownership": ("neocloud_ownership", "rental_3yr", "on_demand", "spot"),
    "neocloud_ownership": ("hyperscaler_ownership", "rental_3yr", "on_demand", "spot"),
    "rental_3yr": ("on_demand", "neocloud_ownership", "hyperscaler_ownership", "spot"),
    "on_demand": ("rental_3yr", "spot", "neocloud_ownership", "hyperscaler_ownership"),
    "spot": ("on_demand", "rental_3yr", "neocloud_ownership", "hyperscaler_ownership"),
}


@dataclass(frozen=True)
class HardwareProfile:
    """Peaks of one accelerator, the achieved fractions of a stack on it, and its prices.

    Figures are plain fields, so that `dataclasses.replace` asks what-if questions.
    """

    name: str
    display_name: str
    accelerator: Accelerator
    efficiency: Efficiency
    prices: tuple[Price, ...]
    peaks: dict[str, float]  # dense, by operand dtype [FLOP/s]
    memory_bytes: float  # what the driver reports where that is known, else the data sheet [B]
    memory_bandwidth: float  # [B/s]
    scale_up_domain: int  # accelerators joined by the fast fabric; 1 where there is none
    scale_up_bandwidth: float  # one way, per accelerator; 0 where there is none [B/s]
    scale_out_bandwidth: float  # NIC, one way, per accelerator; assumed where none is published [B/s]
    host_bandwidth: float  # one way, per accelerator; assumed where none is published [B/s]
    tdp_w: float | None  # [W]
    all_in_w: float | None  # with its share of node, network and cooling; no PUE on top [W]
    assumptions: tuple[str, ...]  # one sentence for each thing that is neither published nor measured
    memory_withheld_bytes: float = 0.0  # of memory_bytes, what the driver keeps from programs [B]
    power_limit_w: float | None = None  # set below the TDP [W]
    own_usd_per_hour: float | None = None  # paid by who asks; ahead of all prices [USD/h]

    def __hash__(self) -> int:
        return hash((self.name, self.stack, self.memory_bytes, self.memory_bandwidth))

    @property
    def one_shot(self) -> bool:
        """Whether collectives inside a domain take one latency; see `ScaleUp`."""
        fabric = self.accelerator.scale_up
        return fabric is None or fabric.one_shot

    @property
    def usable_memory_bytes(self) -> float:
        """Memory that a program can have: what engines take their share of. [B]"""
        return self.memory_bytes - self.memory_withheld_bytes

    @property
    def power_law(self) -> PowerLaw:
        return power_law(self.name, self.accelerator.generation)

    def with_power_cap(self, cap_w: float) -> HardwareProfile:
        """The same under a power cap: matrix rates fall with the clock, memory and links keep theirs. [W]

        Raises CatalogError for a cap that the accelerator cannot have.
        """
        if self.tdp_w is None:
            raise CatalogError(f"power_cap_w={cap_w:g}: the TDP of {self.name} is not known; leave the cap out")
        lowest = LOWEST_CAP * self.tdp_w
        if not lowest <= cap_w <= self.tdp_w:
            raise CatalogError(
                f"power_cap_w={cap_w:g} is not between {lowest:g} and the {self.tdp_w:g} W of {self.name}; "
                "set one in there, or leave it out"
            )
        clock = clock_under_cap(cap_w, self.tdp_w)
        said = (
            f"{self.display_name}: under a cap of {cap_w:g} of {self.tdp_w:g} W matrix rates fall to {clock:.0%} by an "
            "assumed curve (dynamic power as the clock's cube, no measured points); memory and links keep their rates"
        )
        return replace(
            self,
            peaks={dtype: peak * clock for dtype, peak in self.peaks.items()},
            power_limit_w=cap_w,
            all_in_w=None if self.all_in_w is None else self.all_in_w - (self.tdp_w - cap_w),
            assumptions=(*self.assumptions, *(() if cap_w == self.tdp_w else (said,))),
        )

    def with_own_price(self, usd_per_hour: float) -> HardwareProfile:
        """The same at a price of one's own, under every convention. [USD/h]"""
        return replace(self, own_usd_per_hour=usd_per_hour)

    def with_memory_share(self, share: float) -> HardwareProfile:
        """The same, of whose memory the stack takes `share`. [-]"""
        efficiency = self.efficiency.model_copy(update={"memory_utilisation": share})
        return replace(self, efficiency=efficiency)

    @property
    def stack(self) -> str:
        return self.efficiency.stack

    def matrix_peak(self, dtype: str) -> float:
        """Dense peak for operands of `dtype`. [FLOP/s]

        A type that the part lacks runs at the next wider one it has: fp4 -> fp8 -> bf16, int8 -> bf16,
        tf32 -> fp32 vector rate.
        """
        try:
            return self.peaks[dtype]
        except KeyError:
            raise CatalogError(f"unknown matrix dtype {dtype!r}; use one of {', '.join(self.peaks)}") from None

    def usd_per_hour(self, convention: Convention) -> Price:
        """Price under `convention`, else the first that exists in PRICE_FALLBACK.

        A stand-in carries its own convention, `assumed`, and a note saying what it stands for.
        """
        if convention not in PRICE_FALLBACK:
            raise CatalogError(f"unknown price convention {convention!r}; use one of {', '.join(PRICE_FALLBACK)}")
        if self.own_usd_per_hour is not None:
            own = Sourced(value=self.own_usd_per_hour, unit="USD/h", source="set by who asks", accessed=date.today())
            return Price(accelerator=self.name, convention=convention, usd_per_hour=own)
        by_convention = {price.convention: price for price in self.prices}
        if convention in by_convention:
            return by_convention[convention]
        for other in PRICE_FALLBACK[convention]:
            if other in by_convention:
                price = by_convention[other]
                note = f"no {convention} price is known: {other} stands in. {price.usd_per_hour.note}".rstrip()
                figure = price.usd_per_hour.model_copy(update={"assumed": True, "note": note})
                return price.model_copy(update={"usd_per_hour": figure})
        raise CatalogError(
            f"{self.name} has no price under any convention; copy its file, add a [prices] table "
            f"with {convention} = {{ value, unit = 'USD/h', source, accessed }} and load that file"
        )


def profile_of(part: Accelerator, efficiency: Efficiency, prices: tuple[Price, ...] = ()) -> HardwareProfile:
    """Put a part's figures in SI and fill what no source gives with stated assumptions."""
    fabric, power = part.scale_up, part.power
    return HardwareProfile(
        name=part.name,
        display_name=part.display_name,
        accelerator=part,
        efficiency=efficiency,
        prices=prices,
        peaks={dtype: _peak(part, dtype) for dtype in WIDER},
        memory_bytes=to_si(part.memory_reported or part.memory_capacity),
        memory_bandwidth=to_si(part.memory_bandwidth),
        scale_up_domain=int(to_si(fabric.domain)) if fabric else 1,
        scale_up_bandwidth=to_si(fabric.bandwidth) if fabric else 0.0,
        scale_out_bandwidth=to_si(part.scale_out) if part.scale_out else DEFAULT_SCALE_OUT_BANDWIDTH,
        host_bandwidth=to_si(part.host_link) if part.host_link else DEFAULT_HOST_BANDWIDTH,
        tdp_w=to_si(power.tdp) if power.tdp else None,
        all_in_w=to_si(power.all_in) if power.all_in else None,
        assumptions=_assumptions(part, efficiency),
        memory_withheld_bytes=to_si(part.memory_withheld) if part.memory_withheld else 0.0,
    )


def _peak(part: Accelerator, dtype: Dtype) -> float:
    found = next((d for d in WIDER[dtype] if d in part.matrix), None)
    if found is None:  # fp32 or tf32 on a part without a published fp32 rate
        return to_si(part.matrix["bf16"]) * FP32_SHARE_OF_BF16
    return to_si(part.matrix[found])


def _assumptions(part: Accelerator, efficiency: Efficiency) -> tuple[str, ...]:
    name = part.display_name
    said = [f"{name}: {key} is assumed: {note}" for key, note in _assumed_figures(part)]
    if part.status == "announced":
        said.append(f"{name} is announced, not shipping: figures may change")
    if part.scale_out is None:
        rate = human_rate(DEFAULT_SCALE_OUT_BANDWIDTH)
        said.append(f"{name}: no scale-out rate is published; {rate} one way (a 400 Gbit/s NIC each) is assumed")
    if part.host_link is None:
        rate = human_rate(DEFAULT_HOST_BANDWIDTH)
        said.append(f"{name}: no host link is published; {rate} one way (PCIe 4 x16) is assumed")
    if "fp32" not in part.matrix:
        said.append(f"{name}: no fp32 rate is published; {FP32_SHARE_OF_BF16:g} of bf16 is assumed")
    for dtype in NARROW:
        wider = next(d for d in WIDER[dtype] if d in part.matrix)
        if wider != dtype:
            said.append(f"{name}: no {dtype} matrix rate; {dtype} operands run at the {wider} rate")
    return (*said, *_assumed_speed(name, efficiency))


def _assumed_speed(name: str, efficiency: Efficiency) -> tuple[str, ...]:
    """What no fit has touched: all of a default; of a fit, single classes."""
    stack = efficiency.stack
    if efficiency.origin == "assumed":
        return (f"{name}: achieved fractions and overheads of stack {stack!r} are assumed, not fitted",)
    guessed = efficiency.assumed_parts
    if not guessed:
        return ()
    how = ORIGINS[efficiency.origin]
    return (f"{name}: stack {stack!r} is {how}; not from op tables, but from assumed rates: {', '.join(guessed)}",)


def _assumed_figures(part: Accelerator) -> list[tuple[str, str]]:
    """(key, reason) of every figure flagged assumed."""
    fabric, power = part.scale_up, part.power
    figures: dict[str, Sourced | None] = {f"matrix.{dtype}": figure for dtype, figure in part.matrix.items()}
    figures |= {
        "memory_capacity": part.memory_capacity,
        "memory_reported": part.memory_reported,
        "memory_withheld": part.memory_withheld,
        "memory_bandwidth": part.memory_bandwidth,
        "scale_up.domain": fabric.domain if fabric else None,
        "scale_up.bandwidth": fabric.bandwidth if fabric else None,
        "scale_out": part.scale_out,
        "host_link": part.host_link,
        "power.tdp": power.tdp,
        "power.all_in": power.all_in,
    }
    return [(key, figure.note or figure.source) for key, figure in figures.items() if figure and figure.assumed]
