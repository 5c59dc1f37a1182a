from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from reference import assert_equal, frames_for, whole
from route_plans import ROUTES
from waiting import wait_until

from corepipe.errors import PlanError, TopologyError, WorkerError
from corepipe.network.load import load_network
from corepipe.plan.model import Hop, Route
from corepipe.runtime.pool import check_cores
from corepipe.runtime.stream import Stream
from corepipe.topology.model import Cluster


def test_a_machine_that_is_not_at_hand_runs_nothing(chain, here, make_plan):
    plan = make_plan(chain, [(1.0, [(0, 0, len(chain.layers))])])
    with pytest.raises(TopologyError, match="not at hand"):
        Stream(chain, plan, replace(here, at_hand=False, pinnable=False))
    with Stream(chain, plan, replace(here, pinnable=False)) as stream:
        assert len(stream.worker_pids) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores can't be chosen here")
def test_workers_return_to_their_cores_where_the_system_forgets_them(chain, two_cores, make_plan):
    """As it does to all processes of a cpuset that is changed."""
    with Stream(chain, make_plan(chain, ROUTES["replicas"]), two_cores) as stream:
        pid = next(iter(stream.worker_pids.values()))
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        core = os.sched_getaffinity(pid)
        assert len(core) < len(two_cores.cpus)
        for thread in threads:
            os.sched_setaffinity(thread, two_cores.cpus)
        wait_until(lambda: all(os.sched_getaffinity(thread) == core for thread in threads), 10)


def test_a_program_without_an_interpreter_starts_no_workers(chain, two_cores, make_plan, monkeypatch):
    """Each would be the program again."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(WorkerError, match="has none to start"):
        Stream(chain, make_plan(chain, ROUTES["one worker"]), two_cores)


def test_every_thread_of_a_worker_stays_on_its_core(chain, two_cores, make_plan):
    plan = make_plan(chain, ROUTES["pipeline"])
    with Stream(chain, plan, two_cores) as stream:
        for worker in plan.workers:
            for task in Path(f"/proc/{stream.worker_pids[worker.name]}/task").iterdir():
                allowed = os.sched_getaffinity(int(task.name))
                assert allowed == set(two_cores.cpus_of(worker.cores))


def test_a_plan_for_another_network_or_machine_is_refused(chain, two_cores, make_plan, make_chain):
    other = load_network(make_chain(seed=7))
    with pytest.raises(PlanError, match="make it anew"):
        Stream(other, make_plan(chain, ROUTES["pipeline"]), two_cores)
    plan = make_plan(chain, ROUTES["one worker"])
    longer = plan.model_copy(
        update={
            "network": plan.network.model_copy(update={"layers": 9}),
            "routes": (Route(rate_fps=1.0, hops=(Hop(worker=plan.workers[0].name, layers=(0, 9)),)),),
        }
    )
    with pytest.raises(PlanError, match="9 layers"):
        Stream(chain, longer, two_cores)
    far = plan.model_copy(update={"workers": (plan.workers[0].model_copy(update={"cores": (4095,)}),)})
    with pytest.raises(PlanError, match="core 4095"):
        Stream(chain, far, two_cores)


def test_a_worker_whose_config_names_another_cluster_is_refused(chain, two_cores, make_plan):
    first, *others = two_cores.cores
    split = replace(two_cores, clusters=(Cluster("big", (first,)), Cluster("little", tuple(others))))
    plan = make_plan(chain, ROUTES["one worker"])
    (worker,) = plan.workers

    def of(config):
        return plan.model_copy(update={"workers": (worker.model_copy(update={"config": config}),)})

    check_cores(of("big1"), split)
    check_cores(of("all1"), split)
    with pytest.raises(PlanError, match=f"names core {first.id}, cluster little has {others[0].id}"):
        Stream(chain, of("little1"), split)
    with pytest.raises(PlanError, match="unknown cluster 'medium'"):
        Stream(chain, of("medium1"), split)


def test_a_path_object_on_the_search_path_does_no_harm(chain, two_cores, make_plan, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path, tmp_path])
    frames = frames_for(chain, 1)
    with Stream(chain, make_plan(chain, ROUTES["one worker"]), two_cores) as stream:
        assert_equal(stream(frames), whole(chain, frames))
