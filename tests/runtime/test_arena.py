"""Nameless memory, also where Python or the system lacks the usual call for it."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

import pytest

from corepipe.errors import WorkerError
from corepipe.runtime import arena
from corepipe.runtime.arena import anonymous_file

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this Python has no memfd_create to take away")


def forbidden(*_):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class Lacking:
    """A C library whose system lacks the call."""

    def __init__(self, *_, **__):
        ctypes.set_errno(errno.ENOSYS)
        self.memfd_create = lambda name, flags: -1


@pytest.mark.parametrize("known", ["to Python", "to the C library", "to nobody", "but forbidden", "but not there"])
@pytest.mark.parametrize("shared", ["/dev/shm", "/nowhere"])
def test_nameless_memory(monkeypatch, known, shared):
    monkeypatch.setattr(arena, "_SHARED", shared)
    if known == "but forbidden":
        monkeypatch.setattr(os, "memfd_create", forbidden)
    elif known != "to Python":
        monkeypatch.delattr(os, "memfd_create")
    if known == "to nobody":
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    if known == "but not there":
        monkeypatch.setattr(ctypes, "CDLL", Lacking)
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


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no /dev/shm")
def test_shared_memory_that_is_too_small_is_not_used(tmp_path):
    assert not arena._has_room("/dev/shm", 1 << 62)
    assert arena._has_room("/dev/shm", 1)
    assert not arena._has_room(str(tmp_path / "absent"), 1)
