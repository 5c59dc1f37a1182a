from __future__ import annotations

import pytest
from cost_tables import of_machine

from corepipe.bench_setup import bench_names, bench_plans
from corepipe.cost.table import ConfigCosts, CostTable, EngineName, Provenance, TableCluster, TableMachine, TableNetwork
from corepipe.errors import UnknownNameError, UsageError
from corepipe.plan import PLANNERS, proved_bound, replicas_per_core


@pytest.fixture
def table(chain, two_cores):
    """Made-up costs for this machine."""
    return of_machine(chain, two_cores)


def test_plan_names_are_checked(here):
    clusters = [cluster.name for cluster in here.clusters]
    with pytest.raises(UnknownNameError, match="did you mean 'pipe-it'"):
        bench_names(clusters, ["pipeit"])
    with pytest.raises(UsageError, match="two plans are called 'routes'"):
        bench_names(clusters, (), ["routes"])
    assert bench_names(clusters, ["mine", "routes"], ["mine"]) == ["routes", "mine"]
    assert bench_names(["big", "little"], ()) == [
        "all-cores", "cluster:big", "cluster:little", "replicas", "pipe-it", "routes", "routes-exact"
    ]  # fmt: skip
    every = bench_names(["cpu"], [*PLANNERS, "cluster:cpu", "routes-exact"])
    assert set(every) == {*PLANNERS, "cluster:cpu", "routes-exact"}
    assert bench_names(["cpu"], ["pipeline", "pipelines"]) == ["pipeline", "pipelines"]
    assert bench_names(["cpu"], (), ["pipeline"])[-1] == "pipeline"
    with pytest.raises(UsageError, match="two plans are called 'pipeline'"):
        bench_names(["cpu"], ["pipeline"], ["pipeline"])


def test_the_exact_mix_has_a_row_of_its_own_where_routes_is_simpler():
    layers = ConfigCosts(config="big1", layer_s=(0.5, 0.5)), ConfigCosts(config="little1", layer_s=(0.49, 0.51))

    def plans(source, only):
        table = CostTable(
            network=TableNetwork(name="n", sha256="", layers=("a", "b"), cut_bytes=(0, 0, 0)),
            machine=TableMachine(
                description="",
                fingerprint="",
                clusters=(TableCluster(name="big", cores=(0,)), TableCluster(name="little", cores=(1,))),
            ),
            engines=(EngineName(name="onnxruntime", version="any"),),
            configs=layers,
            provenance=Provenance(source=source),
        )
        return bench_plans(table, only, {})

    found = plans("measured", ["replicas", "routes", "routes-exact"])
    assert found["routes"].routes == found["replicas"].routes
    assert found["routes-exact"].predicted_fps == pytest.approx(found["routes"].bound_fps)
    assert found["routes-exact"].predicted_fps > found["routes"].predicted_fps
    assert list(plans("board", ["routes", "routes-exact"])) == ["routes"]
    assert list(plans("board", ["routes-exact"])) == ["routes-exact"]


def test_the_figures_of_a_plan_from_a_file_are_replaced_by_those_of_this_table(table):
    mine = replicas_per_core(table).model_copy(update={"predicted_fps": 1e9, "bound_fps": 1e9})
    plans = bench_plans(table, ["routes", "mine"], {"mine": mine})
    assert plans["mine"].bound_fps == plans["routes"].bound_fps == pytest.approx(proved_bound(table))
    assert plans["mine"].predicted_fps == pytest.approx(replicas_per_core(table).predicted_fps)
