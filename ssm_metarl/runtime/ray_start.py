"""The Ray that work is done on: the cluster of ``RAY_ADDRESS``, joined, or one of this machine's own, started."""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from ssm_metarl.runtime import machine
from ssm_metarl.runtime.actors import PoolError
from ssm_metarl.runtime.auth import MODE, private_token_file, require_token

JOIN_S = 10
"""Seconds in which a cluster that answers must let this process in."""
PROBE_S = 2.0
"""What is there takes a connection within this time."""
LOOK_EVERY_S = 0.5
HEAD_GONE_S, NODE_GONE_S = 20.0, 1.0
"""What has not answered for so long is gone. A head may be on its way back; on this machine a refusal is final, and Ray
ends the program at a moment of its own, with what is not saved."""


def joined_address() -> str | None:
    """That of the cluster to join; None: Ray is started on this machine."""
    given = os.environ.get("RAY_ADDRESS")
    return None if given in (None, "", "local") else given


def start_ray(num_cpus: float, environment: Mapping[str, str] | None = None) -> bool:
    """Joins the cluster of ``RAY_ADDRESS``, or starts Ray on this machine; False if Ray was running already.

    ``environment``: variables for every process that Ray starts for this one. Whoever handles SIGTERM must do so again
    afterwards: Ray's libraries put a handler of theirs before his.

    Raises:
        ConfigError: the cluster is not of this machine, and neither it nor this process uses a token.
        PoolError: there is no cluster at ``RAY_ADDRESS``, or it refuses; or Ray does not start here.
    """
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if environment:
        options["runtime_env"] = {"env_vars": dict(environment)}
    # The kept value of a call that raised holds the same error, and nobody gets it.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    logging.getLogger("ray").setLevel(logging.ERROR)
    if where := joined_address():
        _join(where, options)
        return True
    private_token_file()
    # "local": a Ray that somebody else runs on this machine is not ours to join.
    options |= {"address": "local", "num_cpus": max(1, math.ceil(num_cpus)), "include_dashboard": False}
    try:
        with _sigterm_kept():
            ray.init(**options)
    except Exception as error:  # Ray has no kind of its own for a start that takes too long.
        why = str(error).partition("\n")[0] or type(error).__name__
        raise PoolError(f"Ray does not start on this machine: {why}; --workers.num_workers 0 needs none") from error
    return True


def count_cpus() -> float:
    """CPUs of the cluster that is joined or about to be joined, else those that this process may use."""
    if not ray.is_initialized() and joined_address() is None:
        return min(machine.num_cores(), machine.cpu_limit() or math.inf)
    start_ray(1)
    return ray.cluster_resources().get("CPU", 0)


class Watch:
    """Notices that Ray is gone, its head or its part on this machine: Ray itself ends the process without a word."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        [node] = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
        now = time.monotonic()
        self._watched = [
            _Watched("the head of Ray", context.gcs_address, HEAD_GONE_S, now),
            _Watched(
                "Ray on this machine", f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}", NODE_GONE_S, now
            ),
        ]
        self._done = threading.Event()
        threading.Thread(target=self._probe, daemon=True, name="watch of Ray").start()

    @property
    def gone(self) -> str:
        """What has not answered for too long; empty if all is well."""
        now = time.monotonic()
        silent = (one for one in self._watched if one.why and now - one.answered_at > one.patience_s)
        return "; ".join(f"{one.name} ({one.address}) has gone away: {one.why}" for one in silent)

    def check(self) -> None:
        """Raises PoolError if Ray is gone."""
        if gone := self.gone:
            raise PoolError(gone)

    def close(self) -> None:
        """Ends the watch."""
        self._done.set()

    def _probe(self) -> None:
        while not self._done.wait(LOOK_EVERY_S):
            for one in self._watched:
                one.why = _silence(one.address)
                if not one.why:
                    one.answered_at = time.monotonic()


@dataclass
class _Watched:
    name: str
    address: str
    patience_s: float
    answered_at: float
    why: str = ""


def forsake() -> None:
    """Leaves a Ray that is gone: this program will end without Ray's goodbyes, which take minutes and may crash."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    atexit.register(end)  # The last that is registered is the first that is called.


def _join(where: str, options: dict[str, Any]) -> None:
    require_token(where)
    cure = "start it, correct RAY_ADDRESS, or unset it to train on this machine alone"
    if "://" in where:
        raise PoolError(f"RAY_ADDRESS = {where}: must be HOST:PORT of a cluster that this machine is part of, or auto")
    if where != "auto" and (why := _silence(where)):
        raise PoolError(f"RAY_ADDRESS = {where}: no cluster answers there ({why}); {cure}")
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(JOIN_S))
    try:
        with _sigterm_kept(), _stderr_closed():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        # ``ray start`` demands a token as soon as the machine has one; ``ray.init`` does not show it unasked. But to
        # turn it on for a cluster without one would be worse: this process would refuse the cluster's own messages.
        why = f"{str(error).splitlines()[0]}; if it demands a token, {MODE}=token shows it"
        raise PoolError(f"RAY_ADDRESS = {where}: the cluster cannot be joined: {why}; else {cure}") from error


def _silence(where: str) -> str:
    """Why nothing answers at ``HOST:PORT``; empty if something does."""
    host, _, port = where.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S):
            return ""
    except (OSError, ValueError, OverflowError) as error:
        return str(error) or type(error).__name__


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Hides what Ray's C++ side repeats on the terminal at each failed attempt; what it means is raised in the end."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keeps Ray from replacing a handler of SIGTERM: its own exits in the midst of the start, and leaves processes."""
    utils = ray._private.utils  # Not public; without it a signal during the start is handled less well.
    install = getattr(utils, "set_sigterm_handler", None)
    if install is None or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        yield
        return
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = install
