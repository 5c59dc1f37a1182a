from __future__ import annotations

import pytest

from corepipe.plan import pipe_it
from corepipe.plan.build import Grid
from corepipe.plan.pipeit import find_split, merge_stage, single_core_stages, work_flow


def stages_of(plan):
    (route,) = plan.routes
    return [(hop.worker, hop.layers) for hop in route.hops]


def test_find_split_balances_two_neighbours(make_table):
    grid = Grid.of(make_table({"big1": [1.0] * 6, "little1": [2.0] * 6}, {"big": 1, "little": 1}))
    assert find_split(grid, (0, 0, 6), (1, 6, 6)) == ((0, 0, 4), (1, 4, 6))


def test_find_split_leaves_a_balance_as_it_is(make_table):
    grid = Grid.of(make_table({"cpu1": [1.0] * 4}, {"cpu": 2}))
    assert find_split(grid, (0, 0, 2), (0, 2, 4)) == ((0, 0, 2), (0, 2, 4))


def test_layers_flow_down_to_a_balance(make_table):
    grid = Grid.of(make_table({"cpu1": [1.0] * 8}, {"cpu": 4}))
    assert work_flow(grid, [0, 0, 0, 0]) == [(0, 0, 2), (0, 2, 4), (0, 4, 6), (0, 6, 8)]


def test_stages_merge_where_a_heavy_layer_needs_more_cores(make_table):
    table = make_table({"cpu1": [1.0, 8.0, 1.0, 1.0], "cpu2": [0.6, 4.1, 0.6, 0.6]}, {"cpu": 4})
    grid = Grid.of(table)
    assert single_core_stages(grid) == [0, 0, 0, 0]
    assert 1 in [t for t, start, stop in merge_stage(grid, [0, 0, 0, 0]) if start < stop]
    assert pipe_it(table).predicted_fps == pytest.approx(1 / 4.1)


def test_big_cores_come_first_and_names_tell_the_workers_apart(make_table):
    table = make_table({"big1": [1.0] * 9, "little1": [2.0] * 9}, {"big": 2, "little": 2})
    plan = pipe_it(table)
    assert stages_of(plan) == [("big1-a", (0, 3)), ("big1-b", (3, 6)), ("little1-a", (6, 7)), ("little1-b", (7, 9))]
    assert plan.predicted_fps == pytest.approx(1 / 4.0)
    assert plan.planner == "pipe-it"


def test_whole_clusters_only(make_table):
    table = make_table({"big4": [1.0] * 6, "little4": [2.0] * 6}, {"big": 4, "little": 4})
    plan = pipe_it(table)
    assert stages_of(plan) == [("big4", (0, 4)), ("little4", (4, 6))]
    assert plan.workers[1].cores == (4, 5, 6, 7)


def test_illegal_cuts_are_never_used(make_table):
    table = make_table({"cpu1": [1.0] * 6}, {"cpu": 2}, illegal_cuts=[2, 3, 4])
    assert stages_of(pipe_it(table)) == [("cpu1-a", (0, 1)), ("cpu1-b", (1, 6))]


def test_more_cores_than_layers(make_table):
    plan = pipe_it(make_table({"cpu1": [1.0, 1.0]}, {"cpu": 5}))
    assert stages_of(plan) == [("cpu1-a", (0, 1)), ("cpu1-b", (1, 2))]
    assert len(plan.workers) == 2


def test_one_layer_goes_to_the_merged_cluster(make_table):
    plan = pipe_it(make_table({"cpu1": [1.0], "cpu2": [0.6]}, {"cpu": 2}))
    assert stages_of(plan) == [("cpu2", (0, 1))]
