"""What is refused, and how; what is repaired on the way in."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from corepipe.errors import ModelError, UnknownNameError, UsageError
from corepipe.network.extract import extract_segment
from corepipe.network.load import Limits, load_network, open_network, parse_shape


@pytest.fixture
def small(make_model):
    """A convolution and an activation on a dynamic batch."""
    return make_model(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        {"x": ["N", 3, 8, 8]},
        ["y"],
        {"w": np.ones((4, 3, 3, 3), np.float32), "b": np.zeros(4, np.float32)},
    )


def refused(source, match, **options):
    with pytest.raises(ModelError, match=match) as caught:
        load_network(source, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


# Files


def test_missing_file(tmp_path):
    refused(tmp_path / "absent.onnx", r"absent\.onnx: no such file")


def test_directory(tmp_path):
    refused(tmp_path, "is a directory")


def test_empty_file(tmp_path):
    (tmp_path / "m.onnx").touch()
    refused(tmp_path / "m.onnx", "is empty")


def test_pipe_is_not_opened_for_ever(tmp_path):
    os.mkfifo(tmp_path / "m.onnx")
    refused(tmp_path / "m.onnx", "not a plain file")


@pytest.mark.parametrize("field", ["node name", "operator", "tensor", "comment", "key"])
def test_names_that_are_no_text(small, tmp_path, field):
    node = small.graph.node[1]
    if field == "tensor":
        small.graph.node[0].output[0] = node.input[0] = "MARK"
    elif field == "key":
        small.metadata_props.add(key="MARK", value="")
    else:
        setattr(node, {"node name": "name", "operator": "op_type", "comment": "doc_string"}[field], "MARK")
    (tmp_path / "m.onnx").write_bytes(small.SerializeToString().replace(b"MARK", b"\xff\xfea "))
    refused(tmp_path / "m.onnx", "holds a name that is not text; the file is damaged")


@pytest.mark.parametrize("content", [b"hello world, this is no model", b"\x89PNG\r\n\x1a\n" * 9, bytes(100)])
def test_not_onnx(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    refused(tmp_path / "m.onnx", "not an ONNX model")


def test_lfs_pointer(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    refused(tmp_path / "m.onnx", "git lfs pull")


def test_truncated(tmp_path, small):
    (tmp_path / "m.onnx").write_bytes(small.SerializeToString()[:-40])
    refused(tmp_path / "m.onnx", "truncated")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path, small):
    onnx.save(small, tmp_path / "m.onnx")
    (tmp_path / "m.onnx").chmod(0)
    refused(tmp_path / "m.onnx", "Permission denied")


def test_no_permission_as_told_by_the_system(tmp_path, small, monkeypatch):
    def deny(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    onnx.save(small, tmp_path / "m.onnx")
    monkeypatch.setattr(os, "open", deny)
    refused(tmp_path / "m.onnx", "cannot read the model: Permission denied")


def test_name_with_a_null(tmp_path):
    refused(f"{tmp_path}/a\0b.onnx", "cannot read the model")


def test_file_too_large(tmp_path, small):
    onnx.save(small, tmp_path / "m.onnx")
    refused(tmp_path / "m.onnx", "at most 100 B are allowed", limits=Limits(file_bytes=100))


# Names


def test_unknown_name_is_suggested():
    with pytest.raises(UnknownNameError, match="did you mean 'squeezenet'"):
        open_network("squeeznet")


@pytest.mark.parametrize("name", ["folder/net", "net.onnx"])
def test_what_looks_like_a_path_is_one(name):
    with pytest.raises(ModelError, match="no such file"):
        open_network(name)


def test_open_by_path(tmp_path, small):
    onnx.save(small, tmp_path / "plain")
    network = open_network(str(tmp_path / "plain"), {"x": (2, 3, 8, 8)})
    assert network.name == "plain"
    assert network.inputs[0].shape == (2, 3, 8, 8)


def test_a_file_without_suffix_is_found_by_name(tmp_path, small, monkeypatch):
    onnx.save(small, tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    assert open_network("net").name == "net"


def test_a_name_that_is_not_utf8_is_made_so(tmp_path, small):
    try:
        (path := tmp_path / os.fsdecode(b"caf\xe9.onnx")).write_bytes(small.SerializeToString())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    network = open_network(str(path), {"x": (1, 3, 8, 8)})
    assert network.name == "caf\N{REPLACEMENT CHARACTER}"
    assert extract_segment(network, 0, len(network.layers)).model.graph.name.startswith(network.name)


def test_open_from_the_zoo():
    network = open_network("squeezenet")
    assert network.name == "squeezenet"
    assert network.flops > 1e8


# Structure


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


# Sizes


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


# Repairs


def test_ir_version_3(small):
    small.ir_version = 3
    for tensor in small.graph.initializer:
        small.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    network = load_network(small)
    assert network.model.ir_version >= 4
    assert [t.name for t in network.inputs] == ["x"]
    assert network.outputs[0].shape == (1, 4, 8, 8)


def test_the_model_given_is_left_alone(small):
    before = small.SerializeToString(deterministic=True)
    load_network(small)
    assert small.SerializeToString(deterministic=True) == before


def test_stale_shapes_are_dropped(small):
    small.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [9, 9]))
    small.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 99, 99]))
    assert load_network(small, shapes={"x": (2, 3, 4, 4)} | {"x": (2, 3, 8, 8)}).outputs[0].shape == (2, 4, 8, 8)


def test_declared_shapes_help_where_inference_cannot(make_model):
    nodes = [
        helper.make_node("QuickGelu", ["x"], ["g"], domain="com.microsoft"),
        helper.make_node("Conv", ["g", "w"], ["y"]),
    ]
    constants = {"w": np.ones((2, 3, 1, 1), np.float32)}
    model = make_model(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert len(load_network(model).layers) == 1
    model.graph.value_info.append(helper.make_tensor_value_info("g", TensorProto.FLOAT, [1, 3, 4, 4]))
    network = load_network(model)
    assert [str(t) for t in network.cuts[1].tensors] == ["float32[1x3x4x4]"]
    assert network.outputs[0].shape == (1, 2, 4, 4)


def test_digest_follows_weights_and_shapes_only(small):
    digest = load_network(small).sha256
    assert load_network(small).sha256 == digest
    small.doc_string = "words"
    small.graph.node[0].doc_string = "more words"
    assert load_network(small).sha256 == digest
    assert load_network(small, shapes={"x": (2, 3, 8, 8)}).sha256 != digest
    weights = np.ones((4, 3, 3, 3), np.float32)
    weights[0, 0, 0, 0] = 2
    small.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    assert load_network(small).sha256 != digest


# Shapes


def test_dynamic_batch_becomes_1(small):
    network = load_network(small)
    assert network.inputs[0].shape == (1, 3, 8, 8)
    assert network.outputs[0].shape == (1, 4, 8, 8)


def test_other_dynamic_dims_are_asked_for(make_model, small):
    small.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", None]))
    refused(small, r"'x' has dynamic dims \[1, 3, H, \?\]; .* --shape x:1x3x224x224")
    assert load_network(small, shapes={"x": (2, 3, 6, 5)}).outputs[0].shape == (2, 4, 6, 5)


def test_input_without_any_shape(small):
    small.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    refused(small, "'x' declares no shape")
    assert load_network(small, shapes={"x": (1, 3, 6, 5)}).outputs[0].shape == (1, 4, 6, 5)


def test_one_symbol_is_one_size(make_model):
    model = make_model([helper.make_node("Add", ["a", "b"], ["y"])], {"a": ["N", 3], "b": ["N", 3]}, ["y"])
    assert load_network(model, shapes={"b": (4, 3)}).inputs[0].shape == (4, 3)
    with pytest.raises(UsageError, match="does not fit"):
        load_network(model, shapes={"a": (2, 3), "b": (4, 3)})


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 3, 8), (0, 3, 8, 8), (-1, 3, 8, 8)])
def test_shapes_that_do_not_fit(small, shape):
    with pytest.raises(UsageError, match="x:"):
        load_network(small, shapes={"x": shape})


def test_a_declared_size_of_0_is_dynamic_unless_given(make_model):
    model = make_model([helper.make_node("Concat", ["a", "b"], ["y"], axis=0)], {"a": [0, 3], "b": [2, 3]}, ["y"])
    assert load_network(model).outputs[0].shape == (3, 3)
    empty = load_network(model, shapes={"a": (0, 3)})
    assert (empty.inputs[0].shape, empty.outputs[0].shape) == ((0, 3), (2, 3))
    with pytest.raises(UsageError, match="not positive"):
        load_network(model, shapes={"b": (0, 3)})


def test_shape_of_an_unknown_input(small):
    with pytest.raises(UnknownNameError, match="unknown input 'y'"):
        load_network(small, shapes={"y": (1,)})


def test_parse_shape():
    assert parse_shape("data:1x3x224x224") == ("data", (1, 3, 224, 224))
    assert parse_shape("input:0:5") == ("input:0", (5,))


@pytest.mark.parametrize(
    "text", ["", "data", "data:", ":1x3", "data:1x", "data:0x3", "data:-1x3", "data:axb", "d:1 x3"]
)
def test_parse_shape_refuses(text):
    with pytest.raises(UsageError, match="write NAME:SIZE"):
        parse_shape(text)


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


def test_declared_shapes_do_not_hold_where_the_image_has_another_size(make_model):
    model = foreign(make_model, "N", ["N", 2, 4, 4])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    network = load_network(model, shapes={"x": (1, 2, 8, 4)})
    assert len(network.layers) <= 2


def foreign(make_model, size, declared):
    """Convolution, an operator that is none of ONNX's and whose output is declared, convolution."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("QLinearThing", ["a"], ["b"], domain="com.microsoft"),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["y"]),
    ]
    weights = {"w": np.ones((2, 2, 1, 1), np.float32)}
    model = make_model(nodes, {"x": [size, 2, 4, 4]}, ["y"], weights, **{"com.microsoft": 1})
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, declared))
    return model


@pytest.mark.parametrize(
    ("size", "declared", "shapes", "known"),
    [
        (1, [1, 2, 4, 4], {}, True),
        ("N", ["N", 2, 4, 4], {}, True),
        ("N", [1, 2, 4, 4], {}, True),  # traced with one frame
        ("N", [3, 2, 4, 4], {}, False),
        ("N", ["N", 2, 4, 4], {"x": (5, 2, 4, 4)}, True),
        ("N", [1, 2, 4, 4], {"x": (5, 2, 4, 4)}, False),
        ("N", [1, 2, 4, 4], {"x": (1, 2, 4, 4)}, True),
        ("N", ["M", 2, 4, 4], {}, False),
    ],
)
def test_shapes_behind_operators_of_others_are_known_where_the_file_tells_them(
    make_model, size, declared, shapes, known
):
    network = load_network(foreign(make_model, size, declared), shapes=shapes)
    assert (len(network.layers) > 2) == known
    if known:
        assert network.outputs[0].shape == (shapes["x"][0] if shapes else 1, 2, 4, 4)


def test_sizes_may_be_integers_of_numpy(make_model):
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N", "C"]}, ["y"])
    assert load_network(model, shapes={"x": np.array([2, 3])}).inputs[0].shape == (2, 3)


def test_a_size_that_another_input_has_decided_is_said(make_model):
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["b"], ["z"])]
    model = make_model(nodes, {"a": ["N", 4], "b": ["N", 8]}, ["y", "z"])
    with pytest.raises(UsageError, match="the shape b:3x8 does not fit the model's Nx8 with N = 2"):
        load_network(model, shapes={"a": (2, 4), "b": (3, 8)})
