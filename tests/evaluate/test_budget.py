"""As many units as fit, in parts that grow."""

from frisket.evaluate.budget import FIRST, shuffled, spend


class Clock:
    """Time passes by ``cost`` a unit and ``fixed`` a part."""

    def __init__(self, cost: float, fixed: float = 0.0) -> None:
        self.now, self.cost, self.fixed, self.parts = 100.0, cost, fixed, []

    def work(self, part) -> None:
        self.parts.append(list(part))
        self.now += self.cost * len(part) + self.fixed

    def __call__(self) -> float:
        return self.now


def test_everything_where_it_fits():
    clock = Clock(0.001)
    assert spend(range(500), 60.0, clock.work, clock) == 500
    assert [unit for part in clock.parts for unit in part] == list(range(500))
    assert len(clock.parts[0]) == FIRST
    assert max(len(part) for part in clock.parts) > FIRST


def test_a_part_where_it_does_not():
    clock = Clock(0.5)
    done = spend(range(500), 60.0, clock.work, clock)
    assert 60 <= done <= 120
    assert clock.now - 100 <= 60.0


def test_a_cost_of_each_part_does_not_break_the_budget():
    clock = Clock(0.01, fixed=2.0)
    spend(range(10_000), 30.0, clock.work, clock)
    assert clock.now - 100 <= 33.0


def test_the_first_part_is_always_done():
    clock = Clock(10.0)
    assert spend(range(500), 1.0, clock.work, clock) == FIRST
    assert spend(range(3), 0.0, clock.work, clock) == 3


def test_without_a_budget_all_is_one_part():
    clock = Clock(10.0)
    assert spend(range(50), None, clock.work, clock) == 50
    assert len(clock.parts) == 1


def test_orders_are_seeded():
    assert shuffled(20, 1) == shuffled(20, 1) != shuffled(20, 2)
    assert sorted(shuffled(20, 1)) == list(range(20))
