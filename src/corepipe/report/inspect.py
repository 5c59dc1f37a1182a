"""What `corepipe inspect` shows: the layers of a network with their sizes, work and cut costs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from corepipe.network.model import Cut, Layer, Network, TensorInfo
from corepipe.report.terminal import plain, say


def render_inspect(network: Network, console: Console) -> None:
    """Print the layers of a network as a table, with totals and what its cuts cost.

    Args:
        network: any loaded network.
        console: where to print; a narrow one wraps the names.
    """
    inputs = ", ".join(f"{t.name} {t}" for t in network.inputs)
    outputs = ", ".join(f"{t.name} {t}" for t in network.outputs)
    legal = set(network.legal_cuts())
    say(
        console,
        f"{network.name}: {len(network.layers)} layers, {len(legal)} of {len(network.cuts) - 2} inner cuts "
        f"usable, {network.flops / 1e9:.3f} GFLOPs, {_bytes(network.weight_bytes)} of constants",
    )
    say(console, f"in:  {inputs}")
    say(console, f"out: {outputs}")
    console.print()
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    totals = {
        "layer": "total",
        "MFLOPs": f"{network.flops / 1e6:.1f}",
        "weights": _bytes(network.weight_bytes),
    }
    for column in ("#", "layer", "kind", "operators", "output", "M", "N", "K", "MFLOPs", "in", "out", "weights", "cut"):
        text = column in ("layer", "kind", "operators", "output")
        table.add_column(
            column,
            footer=totals.get(column, ""),
            justify="left" if text else "right",
            overflow="fold" if text else "ellipsis",
            no_wrap=not text,
        )
    for layer in network.layers:
        table.add_row(*map(plain, _row(network, layer, legal)))
    console.print(table)
    console.print(
        "M, N, K: the GEMM that the main operator amounts to, x groups; cut: bytes that cross behind the layer, "
        "x tensors; -: the network cannot be divided there",
        highlight=False,
    )


def inspect_json(network: Network) -> dict[str, Any]:
    """The same as a JSON-ready dict: sizes in bytes, work in floating-point operations."""
    legal = set(network.legal_cuts())
    return {
        "schema_version": 1,
        "command": "inspect",
        "model": {
            "name": network.name,
            "sha256": network.sha256,
            "flops": network.flops,
            "weight_bytes": network.weight_bytes,
            "inputs": [_tensor(t) for t in network.inputs],
            "outputs": [_tensor(t) for t in network.outputs],
        },
        "layers": [_layer(network, layer) for layer in network.layers],
        "cuts": [
            {
                "index": cut.index,
                "legal": cut.index in legal,
                "bytes": cut.nbytes,
                "tensors": [_tensor(t) for t in cut.tensors],
            }
            for cut in network.cuts
        ],
    }


def _row(network: Network, layer: Layer, legal: set[int]) -> list[str]:
    d = layer.descriptor
    gemm = [str(v) if d.m else "" for v in (d.m, d.n, f"{d.k} x{d.groups}" if d.groups > 1 else d.k)]
    return [
        str(layer.index),
        layer.name,
        d.kind,
        _operators(d.op_types),
        ", ".join(map(str, _leaving(network, layer))),
        *gemm,
        f"{d.flops / 1e6:.2f}" if d.flops else "",
        _bytes(d.bytes_in),
        _bytes(d.bytes_out),
        _bytes(d.bytes_weights) if d.bytes_weights else "",
        _crossing(network.cuts[layer.index + 1], legal, len(network.layers)),
    ]


def _leaving(network: Network, layer: Layer) -> list[TensorInfo]:
    """What the layer makes and others read, or the network gives back."""
    made = set(layer.outputs)
    after = {t.name: t for t in network.cuts[layer.index + 1].tensors if t.name in made}
    after |= {t.name: t for t in network.outputs if t.name in made}
    return list(after.values())


def _crossing(cut: Cut, legal: set[int], last: int) -> str:
    if cut.index != last and cut.index not in legal:
        return "-"
    count = f" x{len(cut.tensors)}" if len(cut.tensors) > 1 else ""
    return _bytes(cut.nbytes) + count


def _operators(op_types: tuple[str, ...]) -> str:
    """Operators in order; long lists as counts."""
    if len(op_types) <= 5:
        return "+".join(op_types)
    return ", ".join(f"{count}x {kind}" if count > 1 else kind for kind, count in Counter(op_types).items())


def _layer(network: Network, layer: Layer) -> dict[str, Any]:
    d = layer.descriptor
    return {
        "index": layer.index,
        "name": layer.name,
        "kind": d.kind,
        "op_types": list(d.op_types),
        "outputs": [_tensor(t) for t in _leaving(network, layer)],
        "gemm": {"m": d.m, "n": d.n, "k": d.k, "groups": d.groups},
        "kernel": list(d.kernel),
        "strides": list(d.strides),
        "dilations": list(d.dilations),
        "dtype": d.dtype,
        "flops": d.flops,
        "bytes_in": d.bytes_in,
        "bytes_out": d.bytes_out,
        "bytes_weights": d.bytes_weights,
    }


def _tensor(tensor: TensorInfo) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": str(tensor.dtype),
        "shape": None if tensor.shape is None else list(tensor.shape),
        "bytes": tensor.nbytes,
    }


def _bytes(count: int) -> str:
    """Bytes in the unit that people read: B, kB or MB (powers of ten)."""
    if count >= 1_000_000:
        return f"{count / 1e6:.2f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1000 else f"{count} B"
