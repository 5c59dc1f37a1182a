from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from route_plans import plan_of

from corepipe.runtime.arena import Arena, Layout
from corepipe.runtime.whereabouts import Whereabouts

SLOTS, WORKERS = 5, 3


routes = st.lists(st.lists(st.integers(0, WORKERS - 1), min_size=1, max_size=4), min_size=1, max_size=3)


@given(routes, st.data())
def test_each_slot_is_counted_at_the_first_hop_that_has_not_ended(routes, data):
    plan = plan_of([(1.0, workers) for workers in routes])
    arena = Arena.create(Layout.of([], SLOTS))
    try:
        whereabouts = Whereabouts(plan, arena)
        under_way = {}
        for _ in range(data.draw(st.integers(0, 25))):
            number = data.draw(st.integers(0, SLOTS - 1))
            slot = arena.slots[number]
            if number not in under_way:  # what an earlier frame left in the slot is still there
                route = data.draw(st.integers(0, len(routes) - 1))
                slot.clear_times(len(routes[route]))
                whereabouts.note(number, route)
                under_way[number] = [route, 0]
            elif under_way[number][1] < len(routes[under_way[number][0]]):
                slot.begin(under_way[number][1], 1)
                if data.draw(st.booleans()):
                    slot.end(under_way[number][1], 2)
                    under_way[number][1] += 1
            else:
                whereabouts.forget(number)
                del under_way[number]
            expected = [[0] * (1 + len(workers)) for workers in routes]
            for route, ended in under_way.values():
                expected[route][ended] += 1
            found = zip(whereabouts.at_hops(), routes, strict=True)
            assert [[*at[: len(workers)], sum(at[len(workers) :])] for at, workers in found] == expected
    finally:
        arena.close()
