"""Which instance of a pool takes a request, over the groups of the pool and while instances come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from simulator.des.cluster.group import Group
from simulator.des.cluster.router import Router
from simulator.des.instance.instance import Instance

Kind = TypeVar("Kind", bound=Instance)
MakeRouter = Callable[[Sequence[Instance], list[int] | None], Router]


class Dispatch(Generic[Kind]):
    """The instances of a pool that serve, and the router among them.

    make_router: picks among the instances it is given, whose loads stand in a list in their order if there is one;
        asked anew whenever others are up.
    kv_tokens: KV that a request comes to need where it goes. Where groups have unlike room, only instances that can
        hold it are asked.
    """

    def __init__(self, make_router: MakeRouter, kv_tokens: Callable[[int], int]) -> None:
        self.groups: list[Group[Kind]] = []
        self.open: list[Kind] = []
        self._make_router = make_router
        self._kv_tokens = kv_tokens
        self._unlike_rooms = False
        self._partial: dict[tuple[bool, ...], tuple[list[Kind], Router]] = {}  # routers of some groups alone

    def enlist(self, groups: Sequence[Group[Kind]]) -> None:
        """Begin with these groups."""
        self.groups = list(groups)
        self._unlike_rooms = len({group.spec.instance.kv for group in groups}) > 1
        self.review()

    def review(self) -> None:
        """Others may be up than before."""
        self.open = [instance for group in self.groups for instance in group.open]
        self._partial.clear()
        for group in self.groups:
            for instance in group.instances:
                instance.post_load([0], 0)
        loads = [0] * len(self.open)
        for place, instance in enumerate(self.open):
            instance.post_load(loads, place)
        if self.open:
            self._route = self._make_router(self.open, loads)

    def pick(self, request: int) -> Kind | None:
        """The instance that takes the request; None where none serves that could."""
        if self._unlike_rooms:
            fits = tuple([group.spec.instance.kv.fits(1, self._kv_tokens(request)) for group in self.groups])
            if not all(fits):
                return self._pick_among(fits, request)
        return self.open[self._route(request)] if self.open else None

    def _pick_among(self, among: tuple[bool, ...], request: int) -> Kind | None:
        found = self._partial.get(among)
        if found is None:
            chosen = [i for group, fits in zip(self.groups, among, strict=True) if fits for i in group.open]
            found = self._partial[among] = (chosen, self._make_router(chosen, None) if chosen else _nobody)
        instances, route = found
        return instances[route(request)] if instances else None


def _nobody(request: int) -> int:
    raise AssertionError(f"request {request} has no instance to choose")
