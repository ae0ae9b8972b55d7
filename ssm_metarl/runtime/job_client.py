"""`Cluster`: a Ray cluster seen through its dashboard: takes jobs, tells of them, streams their logs, stops them.

Every request has a deadline. A cluster that does not answer for `PATIENCE_S` is given up in one message; what a job has
saved by then is where ``run.dir`` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from ssm_metarl.config import ConfigError
from ssm_metarl.runtime import auth
from ssm_metarl.runtime.jobs import Job

CONNECT_S, ANSWER_S, SUBMIT_S = 3.0, 8.0, 25.0
UPLOAD_BYTES_PER_S = 250_000
"""A slower upload is given up."""
QUIET_S, RETRY_S, PATIENCE_S = 3.0, 1.0, 10.0
"""After so long without a word in a log, the cluster is asked; how often, and how long, it may fail to answer."""
STOP_S = 25.0
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
KILLED, STOPPED = 128, 143
_STOPPED_LINE = re.compile(r"^stopped by SIG.*$", re.MULTILINE)


class JobError(RuntimeError):
    """A job could not be sent, followed or stopped, or did not run."""


class _Unreachable(JobError):
    """The cluster did not answer, this time."""


class Detached(JobError):
    """The user stopped following. The job goes on."""

    exit_status = 130


class _Client(JobSubmissionClient):
    """Ray's client, with deadlines: without them a machine that vanishes keeps it waiting for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        answer_s = ANSWER_S if method == "GET" else SUBMIT_S
        # The time to connect also bounds how long sending takes.
        send_s = max(CONNECT_S, len(options.get("data") or b"") / UPLOAD_BYTES_PER_S)
        return super()._do_request(method, endpoint, timeout=(send_s, answer_s), **options)


class Cluster:
    """A cluster that answers, and may be used.

    Args:
        address: of its dashboard, such as ``http://127.0.0.1:8265``; None: ``RAY_API_SERVER_ADDRESS``, else that.

    Raises:
        ConfigError: the address is not this machine's own and the cluster is open to all, or it refuses the token.
        JobError: no cluster answers there.
    """

    def __init__(self, address: str | None = None) -> None:
        address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise ConfigError(f"--address={address}: give the dashboard's, such as {DEFAULT_ADDRESS}")
        auth.require_token(self.address, "--address")
        self.is_open = self._mode() != "token"
        missing = auth.missing_token()
        if missing and not self.is_open:
            raise ConfigError(f"--address={self.address}: the cluster wants a token, and {missing}; {auth.HERE}")
        if self.is_open and not auth.is_loopback(self.address):
            raise ConfigError(
                f"--address={self.address}: the cluster asks nobody for a token: whoever reaches it can run code on "
                f"it; {auth.ON_CLUSTER}"
            )
        for name in ("asyncio", "ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray prefers its variables to what it is told.
        self._answered = time.monotonic()
        with self._explained():
            self._client = _Client(self.address)

    def submit(self, job: Job) -> str:
        """Sends a job and returns its id.

        Raises:
            ConfigError: a job of the same run is still at work.
            JobError: the cluster does not take it.
        """
        for other in self._jobs():
            same = all((other.metadata or {}).get(key) == job.metadata[key] for key in ("run_name", "run_dir"))
            if same and not other.status.is_terminal():
                raise ConfigError(
                    f"run.name: job {other.submission_id} trains {job.config.run.name} in {job.config.run.dir} at this "
                    f"moment; {self.hints(other.submission_id)}"
                )
        try:
            with self._explained():
                return self._client.submit_job(
                    entrypoint=job.command,
                    submission_id=job.submission_id,
                    runtime_env=job.runtime_env,
                    metadata=job.metadata,
                )
        except _Unreachable as error:
            hints = self.hints(job.submission_id)
            raise JobError(f"{error}; whether the job was taken is not known; {hints}") from error

    def find(self, name: str) -> str:
        """The id of a job: of that id, or the newest of that ``run.name``, one that runs before one that has ended.

        Raises:
            ConfigError: there is none.
        """
        jobs = self._jobs()
        named = [job for job in jobs if name in (job.submission_id, (job.metadata or {}).get("run_name"))]
        if not named:
            known = ", ".join(job.submission_id for job in jobs[-5:]) or "none at all"
            raise ConfigError(f"{name}: {self.address} has no job of this name or id; it has {known}")
        return max(named, key=lambda job: (not job.status.is_terminal(), job.start_time or 0)).submission_id

    def follow(self, job_id: str) -> int:
        """Prints a job's log as it comes, until it ends. Returns its exit status, 143 if it was stopped.

        Raises:
            JobError: the cluster does not answer any more, or the job's program never ran.
            Detached: Ctrl-C; the job goes on.
        """
        log, self._answered = _Log(), time.monotonic()
        try:
            while True:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", DeprecationWarning)  # How Ray's client calls aiohttp.
                        asyncio.run(self._stream(job_id, log))
                    info = self._info(job_id)
                    if info.status.is_terminal():
                        return self._exit_status(info)
                except _Unreachable as error:
                    if time.monotonic() - self._answered > PATIENCE_S:
                        raise JobError(
                            f"{error}; it has not answered for {PATIENCE_S:g} s; whether job {job_id} goes on is not "
                            f"known; what it has saved is in its run.dir, and the same submit goes on from there; "
                            f"{self.hints(job_id)}"
                        ) from error
                time.sleep(RETRY_S)
        except KeyboardInterrupt:
            raise Detached(f"\njob {job_id} goes on; {self.hints(job_id)}") from None

    def stop(self, job_id: str) -> str:
        """Stops a job, and says what became of it. Raises JobError if it does not end."""
        info = self._info(job_id)
        if info.status.is_terminal():
            return f"job {job_id} has ended already: {info.status}"
        with self._explained():
            self._client.stop_job(job_id)
        deadline = time.monotonic() + STOP_S
        while not (info := self._info(job_id)).status.is_terminal():
            if time.monotonic() > deadline:
                raise JobError(f"job {job_id} was told to stop, and has not within {STOP_S:g} s: {info.status}")
            time.sleep(0.5)
        with self._explained():
            said = _STOPPED_LINE.findall(self._client.get_job_logs(job_id))
        saved = said[-1] if said else "what it has saved stays, and the same submit goes on from there"
        return f"job {job_id} has ended: {info.status}; {saved}"

    def hints(self, job_id: str) -> str:
        """The commands that follow and stop a job."""
        command = f"ssm-metarl submit --address {self.address}"
        return f"to follow it: {command} --attach {job_id}; to stop it: {command} --stop {job_id}"

    def _mode(self) -> str:
        """The cluster's ``RAY_AUTH_MODE``, which it tells everyone."""
        try:
            answer = requests.get(f"{self.address}/api/authentication_mode", timeout=(CONNECT_S, ANSWER_S))
            if answer.status_code in (401, 403):  # Something before the cluster asks already.
                return "token"
            if answer.status_code == 404:  # A Ray that knows no tokens.
                return "disabled"
            answer.raise_for_status()
            return answer.json()["authentication_mode"]
        except (ValueError, KeyError, TypeError) as error:  # Of requests, some are OSErrors as well.
            raise JobError(f"--address={self.address}: what answers is no Ray dashboard; {_WHERE}") from error
        except OSError as error:
            raise JobError(f"--address={self.address}: no cluster answers: {_root(error)}; {_WHERE}") from error

    def _jobs(self) -> list[JobDetails]:
        """Submitted jobs, oldest first."""
        with self._explained():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0)

    def _info(self, job_id: str) -> JobDetails:
        with self._explained():
            info = self._client.get_job_info(job_id)
        self._answered = time.monotonic()
        return info

    async def _stream(self, job_id: str, log: _Log) -> None:
        """Prints what of the log is new, to its end. Raises _Unreachable when the connection breaks."""
        log.rewind()
        async with contextlib.aclosing(self._client.tail_job_logs(job_id)) as chunks:
            has_ended = False
            while True:
                chunk = asyncio.ensure_future(anext(chunks))
                try:
                    while not (await asyncio.wait({chunk}, timeout=QUIET_S))[0]:
                        if has_ended:
                            return
                        has_ended = (await asyncio.to_thread(self._info, job_id)).status.is_terminal()
                    with self._explained():
                        log.show(chunk.result())
                    self._answered = time.monotonic()
                except StopAsyncIteration:
                    return
                finally:
                    chunk.cancel()
                    await asyncio.wait({chunk})

    def _exit_status(self, info: JobDetails) -> int:
        if info.status != JobStatus.FAILED:
            return 0 if info.status == JobStatus.SUCCEEDED else STOPPED
        code = info.driver_exit_code
        if code is None:
            raise JobError(
                f"job {info.submission_id} did not run: {(info.message or 'no reason given').splitlines()[0]}"
            )
        if re.search(r"No module named '?ssm_metarl\b", info.message or ""):
            raise JobError(
                f"job {info.submission_id}: the cluster has no ssm_metarl: install it in its image, or send a clone of "
                "the repository with --working-dir"
            )
        return code if code > 0 else KILLED - code

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What Ray's client raises, in words that help."""
        try:
            yield
        except AuthenticationError as error:
            raise ConfigError(
                f"--address={self.address}: the cluster refuses this token: {str(error).splitlines()[0]}; it must be "
                f"the one that the cluster was started with; {auth.HERE}"
            ) from error
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise _Unreachable(f"--address={self.address}: no answer: {_root(error)}") from error
        except RuntimeError as error:
            if isinstance(error, JobError):
                raise
            text = str(error).strip() or type(error).__name__
            kind = _Unreachable if "closed unexpectedly" in text or "WebSocket error" in text else JobError
            raise kind(f"--address={self.address}: {text.splitlines()[0]} {_last_line(text)}".rstrip()) from error


_WHERE = f"is it the dashboard's address, such as {DEFAULT_ADDRESS}, does the cluster run, is a tunnel to it open?"


class _Log:
    """What was printed of a log, of which every connection tells from its beginning."""

    def __init__(self) -> None:
        self._printed = self._place = 0

    def rewind(self) -> None:
        """Another connection begins."""
        self._place = 0

    def show(self, text: str) -> None:
        """Prints what of the next part is new."""
        new = text[max(0, self._printed - self._place) :]
        self._place += len(text)
        self._printed = max(self._printed, self._place)
        print(new, end="", flush=True)


def _root(error: BaseException) -> str:
    """What the operating system said, beneath the wrappings of the libraries."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text if text.isprintable() and text.isascii() else "what answers does not speak HTTP"


def _last_line(text: str) -> str:
    lines = text.splitlines()
    return lines[-1] if len(lines) > 1 else ""
