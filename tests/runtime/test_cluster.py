"""A real head and two raylets on this machine, with token authentication: jobs, machines that die, resumption."""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from processes import driver, wait_until

from ssm_metarl.config import load_config

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "local_cluster.sh"
SMALL = {
    "iterations": 40,
    "tasks_per_iteration": 4,
    "env": {"episodes_per_task": 2, "horizon": 10},
    "outer": {"num_passes": 2},
    "eval": {"every": 0, "num_tasks": 2, "num_steps": 1},
    "checkpoint": {"every": 1},
    "workers": {"num_workers": 3},  # one more than there are CPUs
}
ENDLESS = ("--iterations", 10_000, "--workers.num_workers", 0)
ANSWER_S = 30.0
JOB_S = 180.0
"""On a busy machine; a job takes some 15 s when nothing else runs."""

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="the nodes have loopback addresses of their own"),
]


class LocalCluster:
    """The cluster of `local_cluster.sh`, and runs that are sent to it. ``folder`` is what is sent."""

    def __init__(self, state, folder, environment):
        self.state, self.folder, self.environment = state, folder, environment
        self.address = f"http://127.0.0.1:{environment['DASHBOARD_PORT']}"
        self.token = (state / "auth_token").read_text()
        (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))

    def submit(self, *words, token=True):
        """``ssm-metarl submit`` on its way; with the token, or with nothing."""
        theirs = {"RAY_AUTH_MODE": "token"} if token else {}
        # A token that somebody has at home must not count.
        theirs["RAY_AUTH_TOKEN_PATH"] = str(self.state / ("auth_token" if token else "nowhere"))
        settings = ("--config", self.folder / "small.yaml", "--working-dir", self.folder)
        attached = "--attach" in words or "--stop" in words
        command = ("-m", "ssm_metarl", "submit", "--address", self.address, *words)
        return driver(*command, *(() if attached else settings), environment=theirs)

    def script(self, *words):
        subprocess.run([SCRIPT, *words], env={**os.environ, **self.environment}, check=True, timeout=60)


def free_port(count):
    """The first of so many free ports in a row, neither among those of Ray's workers nor of outgoing connections."""
    for port in random.SystemRandom().sample(range(20_000, 32_000, 10), 1000):
        with socket.socket() as probe:
            try:
                for port_i in range(port, port + count):
                    with socket.create_server(("127.0.0.1", port_i)):
                        pass
                return port
            except OSError:
                probe.close()
    raise RuntimeError("no free ports")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    state = Path(tempfile.mkdtemp(prefix="ssm-metarl-", dir="/tmp"))  # Ray's sockets need a short path.
    port = free_port(6)
    environment = {
        "CLUSTER_STATE": str(state),
        **{"DASHBOARD_PORT": str(port), "GCS_PORT": str(port + 1), "AGENT_PORT": str(port + 3)},
        **{"START_TIMEOUT": "200", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    }
    become = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
    with driver("-c", become, SCRIPT, "start", environment=environment) as program:
        try:
            assert program.finish(400) == 0, program.stdout + program.stderr
            yield LocalCluster(state, tmp_path_factory.mktemp("sent"), environment)
        finally:
            subprocess.run([SCRIPT, "stop"], env={**os.environ, **environment}, check=True, timeout=90)
            left = program.left(15.0)
            shutil.rmtree(state)
    assert left == [], "nothing of the cluster is left"


def lines_of(path):
    """Complete lines of a run's file, once it is there."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def sha256_of(output):
    return re.search(r"^done: .* params_sha256 (\w{64}) run ", output, re.MULTILINE)[1]


def sha256_in_process(tmp_path):
    from ssm_metarl.runtime.driver import MetaTrainer

    here = {"workers.num_workers": 0, "run.dir": str(tmp_path / "here"), "run.name": "in-process"}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return MetaTrainer(load_config(path, here)).run().params_sha256


def test_a_job_without_the_token_is_refused(cluster, tmp_path):
    with cluster.submit("--run.dir", tmp_path, "--run.name", "refused", token=False) as program:
        assert program.finish(ANSWER_S + 30) == 2
        assert "the cluster wants a token, and RAY_AUTH_MODE is not set" in program.stderr
        assert program.stderr.count("\n") == 1
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{cluster.address}/api/jobs/", timeout=ANSWER_S)


def test_a_machine_dies_in_mid_run(cluster, tmp_path):
    """The job says what it lacks, and begins with what there is. It ends with the parameters of an undisturbed run in
    one process; sent again, it ends at once, with the same."""
    expected = sha256_in_process(tmp_path)
    metrics = tmp_path / "first" / "metrics.jsonl"
    words = ("--run.dir", tmp_path, "--run.name", "first", "--follow")
    with cluster.submit(*words) as program:
        wait_until(lambda: len(lines_of(metrics)) >= 5 or program.returncode is not None, JOB_S, "five iterations")
        cluster.script("kill", "1")
        assert program.finish(JOB_S) == 0, program.stdout + program.stderr
        assert sha256_of(program.stdout) == expected
        assert "iteration    1/40" in program.stdout, "its log is streamed"
        # How many of the two are free when it looks depends on how fast the first worker was.
        assert re.search(r"waiting for resources: wanted 3 workers x 1 CPUs, the cluster has \d", program.stdout)
        assert program.stderr == ""
    records = [json.loads(line) for line in lines_of(metrics)]
    assert [record["iteration"] for record in records] == list(range(40))
    assert sum(record["respawns"] for record in records) > 0, "a worker was lost"
    with cluster.submit(*words) as program:
        assert program.finish(JOB_S) == 0, program.stdout + program.stderr
        assert sha256_of(program.stdout) == expected
        assert "iteration " not in program.stdout
    assert len(lines_of(metrics)) == 40


def test_a_job_is_stopped_by_its_name(cluster, tmp_path):
    words = ("--run.dir", tmp_path, "--run.name", "stopped", *ENDLESS)
    with cluster.submit(*words) as program:
        assert program.finish(ANSWER_S + 30) == 0, program.stderr
        assert "--stop stopped-" in program.stdout
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    wait_until(lambda: len(lines_of(metrics)) >= 2, JOB_S, "two iterations")
    with cluster.submit("--attach", "stopped") as follower, cluster.submit("--stop", "stopped") as program:
        assert program.finish(ANSWER_S + 30) == 0, program.stderr
        assert re.search(r"has ended: STOPPED; stopped by SIGTERM after \d+ of 10000 .* saved up to", program.stdout)
        assert follower.finish(ANSWER_S + 30) == 143, follower.stderr


def test_the_token_is_nowhere(cluster):
    """Not in what the cluster tells of its jobs, nor in any log; its file is its owner's."""
    assert (cluster.state / "auth_token").stat().st_mode & 0o777 == 0o600
    bearer = {"Authorization": f"Bearer {cluster.token}"}
    request = urllib.request.Request(f"{cluster.address}/api/jobs/", headers=bearer)
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        told = answer.read().decode()
    assert "small.yaml" in told and cluster.token not in told
    logs = [path for path in cluster.state.rglob("*") if path.is_file() and path.name != "auth_token"]
    assert len(logs) > 20
    assert [str(path) for path in logs if cluster.token.encode() in path.read_bytes()] == []


def test_the_cluster_goes_away(cluster, tmp_path):
    """The last of this file: the head dies. One message in time, and what was saved is there."""
    from ssm_metarl.runtime import checkpoint
    from ssm_metarl.runtime.storage import open_storage

    metrics = tmp_path / "orphan" / "metrics.jsonl"
    words = ("--run.dir", tmp_path, "--run.name", "orphan", *ENDLESS, "--follow")
    with cluster.submit(*words) as program:
        wait_until(lambda: len(lines_of(metrics)) >= 3 or program.returncode is not None, JOB_S, "three iterations")
        os.killpg(int((cluster.state / "head.pid").read_text()), 9)
        assert program.finish(ANSWER_S + 15) == 1
        assert re.search(r"it has not answered for 10 s; whether job orphan-\S+ goes on is not known", program.stderr)
        assert program.stderr.count("\n") == 1
    with cluster.submit(*words) as program:
        assert program.finish(ANSWER_S + 15) == 1
        assert "no cluster answers: Connection refused" in program.stderr
    warnings = []
    state, _ = checkpoint.load_newest(open_storage(tmp_path / "orphan" / "checkpoints"), warnings.append)
    assert state.iteration >= 3 and warnings == []
