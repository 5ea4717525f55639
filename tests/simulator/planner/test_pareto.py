from hypothesis import given
from hypothesis import strategies as st

from simulator.planner.pareto import pareto_front

numbers = st.integers(0, 8).map(float)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30))
def test_front_is_what_comparing_every_pair_gives(points: list[tuple[float, float]]) -> None:
    def beaten(i: int) -> bool:
        x, y = points[i]
        return any((a >= x and b >= y) and ((a, b) != (x, y) or j < i) for j, (a, b) in enumerate(points) if j != i)

    assert sorted(pareto_front(points)) == [i for i in range(len(points)) if not beaten(i)]
