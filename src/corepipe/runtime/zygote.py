"""A process that compiles what several workers run and forks these off, so that they hold the weights once.

It forks only while it has a single thread: a forked process has no other, and what others had locked stays locked.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
from typing import Any

from corepipe.runtime import child
from corepipe.runtime.huge_pages import use_huge_pages
from corepipe.runtime.worker import Ready


def serve(config: dict[str, Any]) -> None:
    """Compile, report ready, and fork or wait for workers as `twins` asks, until it goes away.

    Reports `threads` in place of that where it has more than one, or the system does not tell.
    """
    ready = Ready(config)
    ready.segments(config["segments"], config["threads"])
    use_huge_pages()
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
                answer = _fork(config, ready, requests, request["fds"], fds)
            requests.send(json.dumps({"id": request["id"], **answer}).encode())


def _fork(
    config: dict[str, Any], ready: Ready, requests: socket.socket, keep: list[int], fds: list[int]
) -> dict[str, Any]:
    """Fork a worker; of `fds` the first holds what it is to do, the others are ends of its lifeline and status pipe.

    Returns:
        `pid`, or `error`: why the system has no process to give.
    """
    config_fd, lifeline_fd, status_fd = fds
    try:
        pid = os.fork()
    except OSError as error:
        pid, why = -1, error.strerror or str(error)
    if pid == 0:
        mine = {*keep, *(spec["model_fd"] for spec in config["segments"])}  # the latter are closed
        for fd in {requests.detach(), config["lifeline_fd"], config["status_fd"], *config["fds"]} - mine:
            os.close(fd)
        child.main(config_fd, lifeline_fd=lifeline_fd, status_fd=status_fd, ready=ready)
    for fd in fds:
        os.close(fd)
    return {"error": why} if pid < 0 else {"pid": pid}


def _exit_code(pid: int) -> dict[str, Any]:
    """`code`: the exit code of a worker that has ended, negative after a signal; None while it runs or is unknown."""
    with contextlib.suppress(ChildProcessError):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return {"code": os.waitstatus_to_exitcode(status)}
    return {"code": None}
