"""Nameless memory, also where Python or the system lacks the usual call for it."""

from __future__ import annotations

import ctypes
import os
import sys

import pytest

from corepipe.errors import WorkerError
from corepipe.runtime.arena import anonymous_file

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this Python has no memfd_create to take away")


@pytest.mark.parametrize("known", ["to Python", "to the C library", "to nobody"])
def test_nameless_memory(monkeypatch, known):
    if known != "to Python":
        monkeypatch.delattr(os, "memfd_create")
    if known == "to nobody":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    fd = anonymous_file(5000, "test")
    try:
        assert os.fstat(fd).st_size == 5000
        assert os.write(fd, b"abc") == 3
        assert not os.get_inheritable(fd)
        if sys.platform == "linux":
            assert os.readlink(f"/proc/self/fd/{fd}").endswith("(deleted)")
    finally:
        os.close(fd)


def test_the_c_library_s_errors_are_told(monkeypatch):
    class Library:
        def __init__(self, *_, **__):
            ctypes.set_errno(24)
            self.memfd_create = lambda name, flags: -1

    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    with pytest.raises(WorkerError, match="Too many open files"):
        anonymous_file(1, "test")
