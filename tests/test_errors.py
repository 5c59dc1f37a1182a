"""Messages of errors can be printed, whatever names from hostile files they hold."""

from __future__ import annotations

import pickle

import pytest

from corepipe.errors import MAX_MESSAGE, CorepipeError, ModelError, UnknownNameError


def test_a_message_is_given_as_it_is():
    assert str(ModelError("m.onnx: is empty; copy it again")) == "m.onnx: is empty; copy it again"


def test_a_message_is_one_printable_line():
    assert str(ModelError("a\nb\tc\x1b[31m\0\ud800")) == "a b c\\u001b[31m\\u0000\\ud800"


def test_a_long_message_keeps_what_is_wrong_and_what_to_do():
    text = str(ModelError("m.onnx: " + "x" * 10**6 + "; export it again"))
    assert len(text) <= MAX_MESSAGE
    assert text.startswith("m.onnx: xxx")
    assert text.endswith("xxx; export it again")


def test_a_long_key_is_shortened_too():
    assert len(str(UnknownNameError("key", "k" * 10**5, ["batch"]))) <= MAX_MESSAGE


def every(kind):
    return [kind, *(found for one in kind.__subclasses__() for found in every(one))]


@pytest.mark.parametrize("kind", every(CorepipeError))
def test_the_whole_message_crosses_processes(kind):
    if not kind.__module__.startswith("corepipe"):
        pytest.skip("made by a test")
    error = kind("planner", "rout", ["routes"]) if kind is UnknownNameError else kind("x" * 5000)
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), other.args, vars(other)) == (kind, error.args, vars(error))
