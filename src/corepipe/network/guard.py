"""Nodes that the onnx library must not be asked about: its shape inference would end the process, or not end itself."""

from __future__ import annotations

import re
from collections.abc import Mapping

from onnx import NodeProto, TypeProto

from corepipe.network.graph import UNKNOWN, attribute, int_attribute, is_standard, type_of

_OPERAND = re.compile(r"([A-Za-z]*)(\.\.\.)?([A-Za-z]*)", re.ASCII)


def fault(node: NodeProto, types: Mapping[str, TypeProto]) -> str:
    """What is wrong with a node that cannot be asked about, empty where nothing is.

    Args:
        node: of the main graph or a subgraph.
        types: of all tensors that it can see.
    """
    if not is_standard(node):
        return ""
    if node.op_type == "Einsum":
        return _einsum_fault(node, types)
    if node.op_type == "GatherND" and int_attribute(node, "batch_dims", 0) < 0:
        return "batch_dims is below zero"
    if node.op_type == "Split" and int_attribute(node, "num_outputs", len(node.output)) != len(node.output):
        return f"num_outputs is not the number of its outputs, {len(node.output)}"
    return ""


def has_typed_inputs(node: NodeProto, types: Mapping[str, TypeProto]) -> bool:
    """Whether all inputs have a type: some inference functions do not ask before they look."""
    return all(name in types for name in node.input if name)


def _einsum_fault(node: NodeProto, types: Mapping[str, TypeProto]) -> str:
    equation = attribute(node, "equation")
    text = equation.decode("utf-8", "replace") if isinstance(equation, bytes) else ""
    left, arrow, right = text.replace(" ", "").partition("->")
    operands = [_OPERAND.fullmatch(operand) for operand in left.split(",")]
    if arrow:
        operands.append(_OPERAND.fullmatch(right))
    fits = len(operands) == len(node.input) + bool(arrow)
    for operand, name in zip(operands, (*node.input, "")[: len(operands)], strict=False):
        shape = type_of(types[name]).shape if name in types else UNKNOWN.shape
        letters = len(operand[1] + operand[3]) if operand else 0
        ellipsis = bool(operand and operand[2])
        fits &= operand is not None and (shape is None or letters == len(shape) or (ellipsis and letters < len(shape)))
    return "" if fits else f"the equation {text[:80]!r} does not fit its inputs"
