"""Graphs that are refused, and how; what is repaired on the way in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from model_files import refused
from onnx import TensorProto, helper

from corepipe.network.load import Limits, load_network


def test_no_graph(tmp_path):
    refused(onnx.ModelProto(ir_version=8), "holds no graph")


def test_no_nodes(make_model):
    refused(make_model([], {"x": [1]}, ["x"]), "no nodes")


def test_no_inputs(make_model):
    node = helper.make_node("RandomNormal", [], ["y"], shape=[2])
    refused(make_model([node], {}, ["y"]), "no inputs")


def test_no_outputs(make_model):
    refused(make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1]}, []), "no outputs")


def test_output_that_is_an_input(make_model):
    refused(make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1]}, ["y", "x"]), "input given back")


def test_too_many_nodes(small):
    refused(small, "2 nodes, at most 1", limits=Limits(nodes=1))


def test_unsorted_nodes_are_sorted(small):
    nodes = [small.graph.node[1], small.graph.node[0]]
    turned = onnx.ModelProto()
    turned.CopyFrom(small)
    del turned.graph.node[:]
    turned.graph.node.extend(nodes)
    assert load_network(turned).sha256 == load_network(small).sha256


def test_cycle(make_model):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    refused(make_model(nodes, {"x": [1]}, ["b"]), "cycle at or before node 'a'")


def test_name_given_twice(make_model):
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Tanh", ["x"], ["y"])]
    refused(make_model(nodes, {"x": [1]}, ["y"]), "'y' is given to two tensors")


def test_initializer_given_twice(small):
    small.graph.initializer.append(small.graph.initializer[0])
    refused(small, "'w' is given to two initializers")


def test_output_listed_twice(small):
    small.graph.output.append(small.graph.output[0])
    refused(small, "the output 'y' is listed twice")


def test_names_of_branches_are_their_own(make_model):
    """Both branches may use a name, a name of the graph around may not be used again."""

    def branch(output):
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Relu", ["x"], [output])], "branch", [], [value])

    def model(output):
        node = helper.make_node("If", ["c"], ["v0"], then_branch=branch(output), else_branch=branch(output))
        return with_condition(make_model, [helper.make_node("Tanh", ["x"], ["t"]), node])

    assert load_network(model("r")).layers
    refused(model("t"), "'t' is given to two tensors")


def test_too_many_constants(small):
    assert load_network(small, limits=Limits(constants=2)).layers
    refused(small, "more than 1 constants", limits=Limits(constants=1))


def test_nodes_of_one_name(make_model):
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=f"n{'_2' * (i == 1)}") for i in range(5)]
    network = load_network(make_model(nodes, {"t0": [1]}, ["t5"]))
    assert [node.name for node in network.model.graph.node] == ["n", "n_2", "n_3", "n_4", "n_5"]


def test_what_read_an_output_by_other_names_still_does(make_model):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Tanh", ["a"], ["early"]),
        helper.make_node("Identity", ["a"], ["alias"]),
        helper.make_node("Identity", ["a"], ["out"]),
        helper.make_node("Sigmoid", ["alias"], ["late"]),
        helper.make_node("Neg", ["a"], ["last"]),
    ]
    network = load_network(make_model(nodes, {"x": [1]}, ["out", "early", "late", "last"]))
    sources = {node.op_type: node.input[0] for node in network.model.graph.node}
    assert sources == {"Relu": "x", "Tanh": "out", "Sigmoid": "out", "Neg": "out"}


def test_outputs_that_are_constants(make_model):
    nodes = [helper.make_node("Add", ["x", "a"], ["y"]), helper.make_node("Add", ["x", "b"], ["z"])]
    values = {"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)}
    network = load_network(make_model(nodes, {"x": [1]}, ["y", "z", "a", "b"], values))
    assert [t.name for t in network.outputs] == ["y", "z", "a", "b"]


def test_input_that_nothing_makes(make_model):
    refused(make_model([helper.make_node("Add", ["x", "ghost"], ["y"])], {"x": [1]}, ["y"]), "'ghost', which nothing")


def test_output_that_nothing_makes(make_model):
    refused(make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1]}, ["z"]), "'z' is made by no node")


def test_checker_has_its_say(make_model):
    refused(make_model([helper.make_node("Relu", ["x", "x"], ["y"])], {"x": [1]}, ["y"]), "not a valid ONNX model")


def test_no_opset():
    model = onnx.ModelProto(ir_version=8)
    model.graph.name = "g"
    model.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]))
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    refused(model, "opset")


@pytest.mark.parametrize("domain", ["com.example", "com.microsoft.nchwc"])
def test_unknown_domain_is_named(make_model, domain):
    node = helper.make_node("Magic", ["x"], ["y"], domain=domain)
    model = make_model([node], {"x": [1]}, ["y"])
    model.opset_import.append(helper.make_opsetid(domain, 1))
    refused(model, rf"unknown domains \({domain}: Magic\)")


def nested(depth):
    """An If in an If in an If ..."""
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], [f"v{depth}"])],
        "inner",
        [],
        [helper.make_tensor_value_info(f"v{depth}", TensorProto.FLOAT, None)],
    )
    for level in reversed(range(depth)):
        other = helper.make_graph(
            [helper.make_node("Tanh", ["x"], [f"e{level}"])],
            "else",
            [],
            [helper.make_tensor_value_info(f"e{level}", TensorProto.FLOAT, None)],
        )
        node = helper.make_node("If", ["c"], [f"v{level}"], then_branch=inner, else_branch=other)
        inner = helper.make_graph(
            [node], "inner", [], [helper.make_tensor_value_info(f"v{level}", TensorProto.FLOAT, None)]
        )
    return list(inner.node)


def with_condition(make_model, nodes):
    model = make_model(nodes, {"x": [1, 4]}, ["v0"])
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return model


def test_nesting(make_model):
    assert len(load_network(with_condition(make_model, nested(6))).layers) == 1
    refused(with_condition(make_model, nested(20)), "nested more than 12 levels")


def test_very_deep_nesting_in_a_file(tmp_path, make_model):
    onnx.save(with_condition(make_model, nested(31)), tmp_path / "m.onnx")
    refused(tmp_path / "m.onnx", "nested|truncated")


@pytest.mark.parametrize("what", ["input", "output"])
def test_types_that_cannot_be_carried(make_model, what):
    model = make_model([helper.make_node("Identity", ["x"], ["y"])], {"x": [1]}, ["y"])
    values = model.graph.input if what == "input" else model.graph.output
    values[0].type.tensor_type.elem_type = TensorProto.STRING
    refused(model, f"{what} '[xy]' has element type STRING")


def test_sequence_input(make_model):
    model = make_model([helper.make_node("SequenceAt", ["x", "i"], ["y"])], {}, ["y"], {"i": np.int64(0)})
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    model.graph.input.append(helper.make_value_info("x", kind))
    refused(model, "'x' is not a tensor")


def asking(dims):
    """66 bytes that ask for a tensor of these dims."""
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["s"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("s", TensorProto.INT64, [len(dims)], dims)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_tiny_model_that_asks_for_4_tib(tmp_path):
    onnx.save(asking([2**40]), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 100
    refused(tmp_path / "m.onnx", r"'y' asks for 4\.0 TiB")


def test_tensor_of_overflowing_size():
    refused(asking([2**40, 2**40, 2**40]), "asks for")


def test_initializer_without_data(make_model, small):
    tensor = small.graph.initializer.add(name="huge", data_type=TensorProto.FLOAT)
    tensor.dims.append(2**40)
    refused(small, r"'huge' asks for 4\.0 TiB")


def test_initializer_with_too_little_data(small):
    small.graph.initializer[0].raw_data = b"\0" * 8
    refused(small, "'w' of dims .* holds 8")


def test_negative_dims(small):
    small.graph.initializer[0].dims[0] = -4
    refused(small, "negative dim")


def test_rank(small):
    refused(small, "'w' has 4 dims, at most 3", limits=Limits(rank=3))


def test_rank_of_an_inner_tensor(make_model):
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    model = make_model(nodes, {"x": [1]}, ["z"], {"s": np.ones(40, np.int64)})
    refused(model, "has 40 dims, at most 16")


def test_weights_together(small):
    refused(small, "its constants take 448 B", limits=Limits(weight_bytes=100))


def test_bytes_alive(small):
    refused(small, "are alive before layer", limits=Limits(live_bytes=100))


def test_input_too_large(small):
    refused(small, "asks for", shapes={"x": (2**30, 3, 8, 8)})


def test_size_within_a_subgraph(make_model):
    body = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["s"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["t"], keepdims=0),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [])],
        [helper.make_tensor("s", TensorProto.INT64, [1], [2**40])],
    )
    other = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["e"], keepdims=0)],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, [])],
    )
    node = helper.make_node("If", ["c"], ["v0"], then_branch=body, else_branch=other)
    refused(with_condition(make_model, [node]), r"'big' asks for 4\.0 TiB")


def test_a_constant_of_nothing_whose_other_dims_are_huge(make_model):
    empty = onnx.TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[0, 2**40, 2**40])
    model = make_model([helper.make_node("Identity", ["x"], ["y"])], {"x": [1]}, ["y"])
    model.graph.initializer.append(empty)
    refused(model, "'c' asks for")


def test_constants_that_double_again_and_again(make_model):
    nodes = [helper.make_node("Concat", [f"d{i}", f"d{i}"], [f"d{i + 1}"], axis=0) for i in range(40)]
    nodes += [helper.make_node("ReduceSum", ["d40"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["y"])]
    model = make_model(nodes, {"x": [1]}, ["y"], {"d0": np.ones(1024, np.float32)})
    refused(model, "asks for")
