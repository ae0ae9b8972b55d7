"""A stand-in for a Ray cluster's dashboard, as far as jobs go: says what a test has it say, breaks when told to."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from aiohttp import web


class Dashboard:
    """Listens on the loopback interface from construction to ``close``. Attributes may be changed at any time.

    ``sent`` are the jobs that it was given, ``uploads`` the packages. ``hang`` makes it accept and not answer.
    """

    def __init__(self) -> None:
        self.mode: str | None = "disabled"
        self.refuses = 0
        self.hang = False
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.sent: list[dict[str, Any]] = []
        self.uploads: list[bytes] = []
        self.stopped: list[str] = []
        self.told = 0
        """Characters of a log that the newest connection to one has got."""
        self.tail_steps: list[int | None] = [None]
        """Of each connection to a log, how many characters it gets before it breaks; None: all, to the job's end."""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def add(self, job_id: str, status: str = "RUNNING", **more: Any) -> None:
        """A job that the cluster knows."""
        start = len(self.jobs) + 1
        self.jobs[job_id] = {
            **{"type": "SUBMISSION", "submission_id": job_id, "entrypoint": "true", "status": status},
            **{"start_time": start, "metadata": {}, **more},
        }

    def close(self) -> None:
        """Vanishes, connections and all; once is enough."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        self._over = asyncio.Event()
        app = web.Application(middlewares=[self._guard], client_max_size=2**30)
        app.add_routes(
            [
                web.get("/api/authentication_mode", self._tell_mode),
                web.get("/api/version", self._tell_version),
                web.get("/api/packages/{kind}/{name}", self._tell_package),
                web.put("/api/packages/{kind}/{name}", self._take_package),
                web.get("/api/jobs/", self._tell_jobs),
                web.post("/api/jobs/", self._take_job),
                web.get("/api/jobs/{id}", self._tell_job),
                web.get("/api/jobs/{id}/logs", self._tell_log),
                web.post("/api/jobs/{id}/stop", self._stop),
                web.get("/api/jobs/{id}/logs/tail", self._tail),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._over.wait()
        await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        while self.hang and not self._over.is_set():
            await asyncio.sleep(0.05)
        if self.refuses and request.path != "/api/authentication_mode":
            return web.Response(status=self.refuses, text="no, or another, token")
        return await handler(request)

    async def _tell_mode(self, _: web.Request) -> web.Response:
        return web.json_response({"authentication_mode": self.mode}) if self.mode else web.Response(status=404)

    async def _tell_version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": ""})

    async def _tell_package(self, _: web.Request) -> web.Response:
        return web.Response(status=404)

    async def _take_package(self, request: web.Request) -> web.Response:
        self.uploads.append(await request.read())
        return web.Response()

    async def _tell_jobs(self, _: web.Request) -> web.Response:
        return web.json_response(list(self.jobs.values()))

    async def _take_job(self, request: web.Request) -> web.Response:
        job = await request.json()
        self.sent.append(job)
        self.add(job["submission_id"], "PENDING", metadata=job["metadata"], entrypoint=job["entrypoint"])
        return web.json_response({"job_id": job["submission_id"], "submission_id": job["submission_id"]})

    async def _tell_job(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        return web.json_response(job) if job else web.Response(status=404, text="no such job")

    async def _tell_log(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.logs.get(request.match_info["id"], "")})

    async def _stop(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["id"]]
        self.stopped.append(job["submission_id"])
        job["status"] = "STOPPED"
        return web.json_response({"stopped": True})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        job_id = request.match_info["id"]
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        limit = self.tail_steps.pop(0) if len(self.tail_steps) > 1 else self.tail_steps[0]
        self.told = told = 0
        while not self._over.is_set():
            log = self.logs.get(job_id, "")[:limit]
            if told < len(log):
                await socket.send_str(log[told : told + 7])
                self.told = told = told + len(log[told : told + 7])
            elif limit is not None:
                request.transport.abort()
                break
            elif self.jobs[job_id]["status"] not in ("PENDING", "RUNNING"):
                break
            else:
                await asyncio.sleep(0.02)
        return socket


@contextlib.contextmanager
def dashboard() -> Iterator[Dashboard]:
    """A `Dashboard` that is gone afterwards."""
    server = Dashboard()
    try:
        yield server
    finally:
        server.close()
