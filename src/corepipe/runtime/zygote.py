"""A process that compiles what several workers run and forks these off, so that they hold the weights once.

It forks only while it has a single thread: a forked process has no other, and what others had locked stays locked.
"""

from __future__ import annotations

import gc
import json
import os
import socket
from typing import Any

from corepipe.runtime import child
from corepipe.runtime.huge_pages import use_huge_pages
from corepipe.runtime.worker import Ready

_AT_START = 2
"""Threads before anything is compiled: this one, and the one that watches the parent."""


def serve(config: dict[str, Any]) -> None:
    """Compile, report ready, and fork or wait for workers as `twins` asks, until it goes away.

    Reports `threads` in place of that where it has others than its own, or the system does not tell.
    """
    child.name_process("corepipe:zygote")
    if (threads := len(child.threads())) != _AT_START:
        child.report(config["status_fd"], threads=threads)
        return
    alive_fds = os.pipe()
    ready = Ready(config)
    ready.segments(config["segments"], config["threads"])
    use_huge_pages()
    gc.collect()
    gc.freeze()  # what exists by now is no garbage: looking at it would copy it
    config["watch"].stop()
    if (threads := len(child.threads())) != 1:
        child.report(config["status_fd"], threads=threads)
        return
    child.report(config["status_fd"], ready=True)
    with socket.socket(fileno=config["requests_fd"]) as requests:
        while True:
            config["watch"].wait_for(requests.fileno())
            data, fds, _, _ = socket.recv_fds(requests, 1 << 16, 3)
            if not data:
                return
            request = json.loads(data)
            if "wait" in request:
                answer = _exit_code(request["wait"])
            else:
                answer = _fork(config, ready, requests, alive_fds, request["fds"], fds)
            requests.send(json.dumps({"id": request["id"], **answer}).encode())


def _fork(
    config: dict[str, Any],
    ready: Ready,
    requests: socket.socket,
    alive_fds: tuple[int, int],
    keep: list[int],
    fds: list[int],
) -> dict[str, Any]:
    """Fork a worker.

    Args:
        config: of this process.
        ready: what it has compiled.
        requests: its end of the socket.
        alive_fds: a pipe whose other end no process but this one holds.
        keep: the descriptors that the worker needs.
        fds: what it is to do, and the ends of its lifeline and status pipe; they are closed here.

    Returns:
        `pid`, or `error`: why the system has no process to give.
    """
    try:
        config_fd, lifeline_fd, status_fd = fds
        pid = os.fork()
    except ValueError:
        pid, why = -1, "too many open files"  # some did not arrive
    except OSError as error:
        pid, why = -1, error.strerror or str(error)
    if pid == 0:
        try:
            mine = {*keep, *(spec["model_fd"] for spec in config["segments"])}  # the latter are closed
            left = {requests.detach(), alive_fds[1], config["lifeline_fd"], config["status_fd"], *config["fds"]}
            for fd in left - mine:
                os.close(fd)
            given = {"lifeline_fd": lifeline_fd, "other_lifeline_fds": alive_fds[:1], "status_fd": status_fd}
            child.main(config_fd, **given, ready=ready)
        finally:
            os._exit(1)
    for fd in fds:
        os.close(fd)
    return {"error": why} if pid < 0 else {"pid": pid}


def _exit_code(pid: int) -> dict[str, Any]:
    """`code` of a worker that has ended, negative after a signal; nothing while it runs; `unknown` of one long gone."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return {"unknown": True}
    return {"code": os.waitstatus_to_exitcode(status)} if ended else {}
