"""Ray joined, refused, gone; the pool that follows its cluster; Ray's metrics."""

import json
import os
import re
import socket
import time
import urllib.request
from types import SimpleNamespace

import pytest
from processes import descendants, driver, kill, wait_until
from test_pool import SHARED, make_pool, make_specs  # noqa: F401 (a fixture)

from ssm_metarl.config import ConfigError
from ssm_metarl.runtime import pool as pool_module
from ssm_metarl.runtime import ray_start
from ssm_metarl.runtime.pool import PoolError
from ssm_metarl.runtime.ray_metrics import COUNTERS, GAUGES, RayMetrics


@pytest.fixture
def no_ray(monkeypatch):
    """As in a process in which Ray has not been started."""
    monkeypatch.setattr(ray_start.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_start.ray, "init", lambda **_: pytest.fail("went on to Ray"))
    for name in ("RAY_AUTH_MODE", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


def test_a_cluster_that_is_not_there_is_refused_at_once(no_ray, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(PoolError, match=rf"RAY_ADDRESS = {address}: no cluster answers there .*refused.*unset it"):
            ray_start.start_ray(1)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "127.0.0.1", "127.0.0.1:port", "127.0.0.1:999999"])
def test_an_address_that_is_none(no_ray, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(PoolError, match=rf"^RAY_ADDRESS = {address}: "):
        ray_start.start_ray(1)


def test_a_cluster_elsewhere_needs_a_token(no_ray, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:6379")
    with pytest.raises(ConfigError, match=r"(?s)RAY_ADDRESS ?= ?192.0.2.9:6379.*RAY_AUTH_MODE=token"):
        ray_start.start_ray(1)


def test_a_cluster_that_refuses_is_one_message(no_ray, monkeypatch, capfd):
    def refuse(**_):
        os.write(2, b"[W] gcs_client.cc: again and again\n")
        raise ConnectionError("Failed to connect\nfor many reasons")

    monkeypatch.setattr(ray_start.ray, "init", refuse)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(PoolError, match=r"cannot be joined: Failed to connect; .*RAY_AUTH_MODE=token"):
            ray_start.start_ray(1)
    assert capfd.readouterr().err == ""


def test_a_ray_that_does_not_start_is_one_message(no_ray, monkeypatch):
    def time_out(**_):
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(ray_start.ray, "init", time_out)
    monkeypatch.setattr(ray_start, "private_token_file", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        PoolError, match=r"Ray does not start .*: The current node timed out during startup.; --workers"
    ):
        ray_start.start_ray(1)


@pytest.mark.parametrize(("which", "name"), [(0, "the head of Ray"), (1, "Ray on this machine")])
def test_what_has_gone_away_is_named_after_its_patience(ray_session, monkeypatch, which, name):
    monkeypatch.setattr(ray_start, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(ray_start, "HEAD_GONE_S", 0.5)
    monkeypatch.setattr(ray_start, "NODE_GONE_S", 0.5)
    watch = ray_start.Watch()
    time.sleep(0.3)
    watch.check()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        watch._watched[which].address = f"127.0.0.1:{nobody.getsockname()[1]}"
        time.sleep(0.2)
        watch.check()
        wait_until(lambda: watch.gone, 20, "notice")
        with pytest.raises(PoolError, match=rf"{name} \(127.0.0.1:\d+\) has gone away: .*refused"):
            watch.check()
    watch.close()


def test_a_run_whose_ray_is_killed_ends_in_one_message_and_keeps_its_state(tmp_path):
    """In the worker's time: a driver that is just using the object store is ended by Ray, see docs/reliability.md."""
    command = (
        "train --iterations 100000 --tasks_per_iteration 2 --env.episodes_per_task 400 "
        "--checkpoint.every 1000000 --workers.num_workers 1 --run.name gone --run.dir"
    )
    metrics = tmp_path / "gone" / "metrics.jsonl"
    with driver("-m", "ssm_metarl", *command.split(), tmp_path) as run:
        wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, 120, "two iterations")
        # A driver's title names its parts as well: what is meant ends with its own path.
        [pid] = [part.pid for part in descendants(run.pid) if part.title.split()[0].endswith("/raylet")]
        kill(pid)
        assert run.finish(60) == 1, run.stderr
        errors = run.stderr
    ours = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1, errors
    assert re.search(r"has gone away: .*; ended after \d+ of 100000 iterations; saved up to", ours[0])
    done = [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()]
    assert f"saved up to iteration {done[-1] + 1};" in ours[0]


def test_auto_follows_the_cluster(make_pool, monkeypatch):  # noqa: F811
    """One, then three, then two: those that work stay until they go by themselves, the others are given up."""
    monkeypatch.setattr("ssm_metarl.runtime.actors.RESIZE_S", 0.1)
    affordable = SimpleNamespace(count=1)
    monkeypatch.setattr(pool_module, "_affordable", lambda config: affordable.count)
    pool, events = make_pool("auto")
    assert pool.num_workers == 1

    def work_until(ready):
        deadline = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < deadline, events
            assert list(pool.map("add", SHARED, make_specs(3))) == [3.0, 4.0, 5.0]
            time.sleep(0.05)

    affordable.count = 3
    work_until(lambda: len(pool._actors.idle) == 3)
    affordable.count = 2
    time.sleep(0.2)
    work_until(lambda: True)
    assert pool.num_workers == 3, "nobody who works is sent away"
    victim = pool._actors.idle[0]
    pool_module.ray.kill(victim.handle)
    work_until(lambda: pool.num_workers == 2)
    assert [event["cause"].split(";")[0] for event in events if event["event"] == "resize"] == [
        "3 workers instead of 1",
        "2 workers instead of 3",
    ]


def test_more_workers_than_there_is_room_for_is_said_at_once(make_pool):  # noqa: F811
    pool, events = make_pool(5, **{"workers.cpus_per_worker": 1.0})
    assert [event["event"] for event in events] == ["waiting"]
    assert "0 of 5 workers" in events[0]["cause"] and "wanted 5 workers x 1 CPUs" in events[0]["cause"]
    assert list(pool.map("add", SHARED, make_specs(3))) == [3.0, 4.0, 5.0]


def test_metrics_reach_rays_end_point(ray_session):
    sink = RayMetrics("first")
    sink.iteration({"iteration": 4, **{name: 2.5 for name in GAUGES if name != "iteration"}})
    sink.evaluation(5, {"pre": -3.0, "post": -1.0})
    for event, _ in COUNTERS.values():
        sink.event({"event": event})
    sink.event({"event": "warning"})
    [node] = ray_session.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"

    def read():
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if 'run="first"' in line}

    wait_until(lambda: len(read()) >= len(GAUGES) + len(COUNTERS), 60, "metrics")
    values = read()
    assert values["ray_ssm_metarl_iteration"] == 5 and values["ray_ssm_metarl_iteration_s"] == 2.5
    assert values["ray_ssm_metarl_held_out_return_post"] == -1.0
    assert {name for name in values} >= {f"ray_ssm_metarl_{name}_total" for name in COUNTERS}
