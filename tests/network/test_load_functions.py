"""Functions that a model brings along: inlined, within limits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from model_files import refused
from onnx import TensorProto, helper

from corepipe.network.load import Limits, load_network


def functions(levels, calls):
    """Functions that each call the next one several times."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    made = []
    for level in range(levels):
        kind, domain = (f"f{level + 1}", "local") if level + 1 < levels else ("Relu", "")
        names = ["a", *(f"t{i}" for i in range(calls - 1)), "b"]
        nodes = [helper.make_node(kind, [names[i]], [names[i + 1]], domain=domain) for i in range(calls)]
        made.append(helper.make_function("local", f"f{level}", ["a"], ["b"], nodes, opsets))
    return made


def calling(make_model, made):
    model = make_model([helper.make_node("f0", ["x"], ["y"], domain="local")], {"x": [1, 4]}, ["y"], local=1)
    model.functions.extend(made)
    return model


def test_functions_are_inlined(make_model):
    network = load_network(calling(make_model, functions(3, 2)))
    assert [node.op_type for node in network.model.graph.node] == ["Relu"] * 8
    assert not network.model.functions


def test_functions_of_another_opset_are_inlined(make_model):
    """Not left to an engine that may know another operator by their name."""
    body = [helper.make_node("Tanh", ["a"], ["b"])]
    made = helper.make_function("com.microsoft", "Gelu", ["a"], ["b"], body, [helper.make_opsetid("", 16)])
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    model = make_model([node], {"x": [1, 4]}, ["y"], **{"com.microsoft": 1})
    model.functions.append(made)
    assert [node.op_type for node in load_network(model).model.graph.node] == ["Tanh"]


def test_functions_whose_operators_are_others_in_the_models_opset_are_refused(make_model):
    """A softmax over the last axis by opset 13, over all axes from the second by opset 12."""
    made = helper.make_function(
        "own", "f", ["a"], ["b"], [helper.make_node("Softmax", ["a"], ["b"])], [helper.make_opsetid("", 12)]
    )
    model = make_model([helper.make_node("f", ["x"], ["y"], domain="own")], {"x": [1, 4, 4]}, ["y"], own=1)
    model.functions.append(made)
    refused(model, "Softmax|opset")


def test_functions_that_explode(make_model):
    refused(calling(make_model, functions(40, 2)), "inlining its functions adds 1099511627775 nodes")


def test_a_few_functions_may_not_ask_for_seconds_of_work(make_model):
    load_network(calling(make_model, functions(9, 2)), limits=Limits(inlined_nodes=600))
    refused(calling(make_model, functions(9, 2)), "adds 511 nodes", limits=Limits(inlined_nodes=510))
    refused(calling(make_model, functions(10, 3)), "adds 59048 nodes and .*, at most 20000")


@pytest.mark.parametrize("given", [["x"], ["x", ""]])
def test_arguments_that_a_call_leaves_out(make_model, given):
    """Inlined, the node in the function has an empty name where it needs a tensor."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    body = [helper.make_node("RegexFullMatch", ["w"], ["m"], pattern="a"), helper.make_node("Relu", ["a"], ["b"])]
    made = helper.make_function("local", "f0", ["a", "w"], ["b"], body, opsets)
    model = make_model([helper.make_node("f0", given, ["y"], domain="local")], {"x": [1, 4]}, ["y"], local=1)
    model.functions.append(made)
    model.opset_import[0].version = 20
    refused(model, "input 0 is marked single but has an empty string")


def constant(**value):
    return helper.make_node("Constant", [], ["b"], **value)


def calls(make_model, body, count, attributes=(), **given):
    """A model that calls one function many times."""
    nodes = [helper.make_node("f0", [], [f"t{i}"], domain="local", **given) for i in range(count)]
    model = make_model([*nodes, helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 4]}, ["y"], local=1)
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "f0", [], ["b"], body, opsets, attributes=attributes))
    return model


def documented(node, text):
    node.doc_string = text
    return node


def branching(value):
    """An If with an initializer in its branches."""
    branch = helper.make_graph(
        [helper.make_node("Identity", ["i"], ["o"])],
        "branch",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, "i")],
    )
    condition = helper.make_node("Constant", [], ["c"], value_int=1)
    cast = helper.make_node("Cast", ["c"], ["d"], to=TensorProto.BOOL)
    return [condition, cast, helper.make_node("If", ["d"], ["b"], then_branch=branch, else_branch=branch)]


@pytest.mark.parametrize(
    "body",
    [
        [constant(value_ints=range(4096))],
        [constant(value_floats=[0.5] * 4096)],
        [constant(value_string="s" * 4096)],
        [constant(value=helper.make_tensor("s", TensorProto.STRING, [1], [b"s" * 4096]))],
        [documented(constant(value_int=1), "d" * 4096)],
        branching(np.ones(1024, np.float32)),
    ],
    ids=["ints", "floats", "string", "strings", "doc", "subgraph"],
)
def test_bytes_that_functions_repeat(make_model, body):
    refused(calls(make_model, body, 100), "inlining its functions adds", limits=Limits(inlined_bytes=2**18))
    load_network(calls(make_model, body, 10), limits=Limits(inlined_bytes=2**18))


def test_long_arguments_that_functions_repeat(make_model):
    body = [constant(value_int=1)]
    for node in (wide := [helper.make_node("Constant", [], [f"c{i}"]) for i in range(50)]):
        node.attribute.add(name="value_ints", ref_attr_name="v", type=onnx.AttributeProto.INTS)
    model = calls(make_model, [*wide, *body], 4, ["v"], v=range(4096))
    refused(model, "inlining its functions adds", limits=Limits(inlined_bytes=2**18))

    name = "n" * 4096
    model = make_model([helper.make_node("f0", [name], ["y"], domain="local")], {name: [1, 4]}, ["y"], local=1)
    body = [helper.make_node("Sum", ["a"] * 100, ["b"])]
    model.functions.append(helper.make_function("local", "f0", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    refused(model, "inlining its functions adds", limits=Limits(inlined_bytes=2**18))


def test_empty_functions_that_explode(make_model):
    made = functions(40, 2)
    del made[-1].node[:]
    refused(calling(make_model, made), "inlining its functions adds 549755813887 nodes")


def test_a_subgraph_given_to_a_function(make_model):
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "branch", [], [])
    refused(calls(make_model, [constant(value_int=1)], 1, g=branch), "gives a subgraph to a function")


def test_strings_are_not_folded(make_model):
    nodes = [
        helper.make_node("Tile", ["s", "times"], ["many"]),
        helper.make_node("Size", ["many"], ["size"]),
        helper.make_node("Gather", ["many", "zero"], ["one"]),
        helper.make_node(
            "LabelEncoder", ["one"], ["label"], domain="ai.onnx.ml", keys_strings=["s"], values_floats=[1.0]
        ),
        helper.make_node("Add", ["x", "label"], ["y"]),
    ]
    model = make_model(nodes, {"x": [1]}, ["y"], {"times": np.array([100]), "zero": np.int64(0)}, **{"ai.onnx.ml": 3})
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"s" * 100]))
    network = load_network(model)
    assert not any(len(tensor.string_data) > 1 for tensor in network.model.graph.initializer)


def test_functions_that_call_themselves(make_model):
    made = functions(2, 1)
    made[1].node[0].op_type, made[1].node[0].domain = "f0", "local"
    refused(calling(make_model, made), "in a circle")


def with_default(make_model, default, given=None):
    """A function whose LeakyRelu takes the function's attribute, called through another one that may give it."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    body = helper.make_node("LeakyRelu", ["a"], ["b"])
    body.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    inner = helper.make_function("local", "inner", ["a"], ["b"], [body], opsets)
    inner.attribute_proto.append(default)
    call = helper.make_node("inner", ["a"], ["b"], domain="local", **({} if given is None else {"alpha": given}))
    outer = helper.make_function("local", "f0", ["a"], ["b"], [call], opsets)
    return calling(make_model, [outer, inner])


@pytest.mark.parametrize(("given", "alpha"), [(None, 0.3), (0.7, 0.7)])
def test_attributes_that_a_call_leaves_out_are_the_functions_defaults(make_model, given, alpha):
    network = load_network(with_default(make_model, helper.make_attribute("alpha", 0.3), given))
    (node,) = network.model.graph.node
    assert {a.name: round(a.f, 6) for a in node.attribute} == {"alpha": alpha}


def test_a_default_that_is_a_tensor_is_refused(make_model):
    tensor = onnx.numpy_helper.from_array(np.ones(1, np.float32))
    refused(with_default(make_model, helper.make_attribute("alpha", tensor)), "'alpha' of its function 'inner'")


def test_a_default_that_is_a_tensor_and_not_needed_is_none_of_our_business(make_model):
    tensor = onnx.numpy_helper.from_array(np.ones(1, np.float32))
    assert load_network(with_default(make_model, helper.make_attribute("alpha", tensor), 0.7)).layers
