"""Messages of errors can be printed, whatever names from hostile files they hold."""

from __future__ import annotations

import pickle

from corepipe.errors import MAX_MESSAGE, ModelError, UnknownNameError


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


def test_the_whole_message_crosses_processes():
    error = ModelError("x" * 5000)
    assert pickle.loads(pickle.dumps(error)).args == error.args
