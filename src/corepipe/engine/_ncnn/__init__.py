"""ONNX segments translated into ncnn's layers; imports onnx, but not ncnn."""

from __future__ import annotations

from corepipe.engine._ncnn.graph import Output, Program
from corepipe.engine._ncnn.translate import translate

__all__ = ["Output", "Program", "translate"]
