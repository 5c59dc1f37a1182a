from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from corepipe.cost.table import (
    ConfigCosts,
    CostTable,
    EngineName,
    HopCosts,
    Provenance,
    TableCluster,
    TableMachine,
    TableNetwork,
)
from corepipe.plan import plan


def hops(made):
    return sum(len(route.hops) for route in made.routes)


@st.composite
def tables(draw):
    layers = draw(st.integers(1, 6))
    seconds = st.lists(st.floats(1e-3, 1e-2), min_size=layers, max_size=layers).map(tuple)
    return CostTable(
        network=TableNetwork(
            name="n", sha256="", layers=tuple(f"l{i}" for i in range(layers)), cut_bytes=(0,) * (layers + 1)
        ),
        machine=TableMachine(
            description="",
            fingerprint="",
            clusters=(TableCluster(name="big", cores=(0,)), TableCluster(name="little", cores=(1,))),
        ),
        engine=EngineName(name="onnxruntime", version="1"),
        configs=tuple(ConfigCosts(config=name, layer_s=draw(seconds)) for name in ("big1", "little1", "all2")),
        hop=HopCosts(fixed_s=1e-5),
        provenance=Provenance(source="made-up"),
    )


@settings(max_examples=60, deadline=None)
@given(table=tables(), tolerance=st.sampled_from([0.0, 0.02, 0.2, 0.5]))
def test_a_simpler_plan_is_taken_only_within_the_tolerance(table, tolerance):
    best, found = plan(table), plan(table, tolerance=tolerance)
    assert found.planner == "routes"
    assert found.bound_fps == best.bound_fps
    assert found.predicted_fps >= (1 - tolerance) * best.predicted_fps * (1 - 1e-9)
    assert hops(found) <= hops(best)
    for name in ("replicas", "pipeline"):
        other = plan(table, name)
        if other.predicted_fps >= (1 - tolerance) * best.predicted_fps and tolerance:
            assert hops(found) <= hops(other)
