"""``ssm-metarl doctor``: once as a whole, and each check on a machine that has what it looks for."""

import signal
import sys
import time
from collections import namedtuple
from importlib import metadata
from types import SimpleNamespace

import pytest
from processes import driver, wait_until

from ssm_metarl import doctor as module
from ssm_metarl.config import TrainConfig
from ssm_metarl.doctor import CHECKS, Check, Patient, examine, run_check
from ssm_metarl.runtime import machine
from ssm_metarl.runtime.process import ENVIRONMENT

GB = 10**9


@pytest.fixture
def patient(tmp_path):
    return Patient(TrainConfig(), tmp_path)


def test_doctor_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with driver("-m", "ssm_metarl", "doctor", "--run.dir", tmp_path / "runs") as program:
        status = program.finish(120)
        out, output = program.stdout, program.stdout + program.stderr
        assert status == 0, output
        assert not program.left(10.0), "no process of its Ray is left"
    lines = {line[:20].strip(): line[20:] for line in out.split("\n\n")[0].splitlines()}
    assert list(lines) == list(CHECKS)
    assert not [line for line in lines.values() if line.startswith("fail")]
    assert "ray 2" in lines["versions"]
    assert str(tmp_path / "runs") in lines["folder of runs"]
    assert "return -" in lines["training"]
    assert "the same as without Ray" in lines["training in worker"]
    if sys.platform == "linux":
        assert lines["room for workers"][6:].startswith("a worker took ")
    assert "this machine can train" in out
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir()), "runs are not begun"


def test_the_report_says_what_is_wrong_and_the_cure(monkeypatch, capsys):
    def raises(_):
        raise ValueError("no such thing\nand more")

    checks = {
        "good": lambda _: Check("ok", "yes"),
        "poor": lambda _: Check("warn", "small", "more"),
    }
    monkeypatch.setattr(module, "CHECKS", {"good": checks["good"]})
    assert examine(TrainConfig()) == 0
    assert capsys.readouterr().out.endswith("all is well: this machine can train\n")
    monkeypatch.setattr(module, "CHECKS", checks)
    assert examine(TrainConfig()) == 0
    assert "can train, but:\n  poor: small\n    cure: more\n" in capsys.readouterr().out
    monkeypatch.setattr(module, "CHECKS", {"broken": raises, **checks})
    assert examine(TrainConfig()) == 1
    out = capsys.readouterr().out
    assert "good                ok    yes\n" in out, "the others still run"
    assert "cannot train as it is:\n  broken: ValueError: no such thing\n  poor: small\n" in out
    assert "and more" not in out


def test_a_check_that_hangs_ends(monkeypatch, patient):
    monkeypatch.setattr(module, "LIMIT_S", 0.1)

    def hangs(_):
        while True:
            try:
                time.sleep(10)
            except Exception:
                continue

    assert run_check(hangs, patient) == Check("fail", "no answer within 0.1 s")


def test_a_check_that_cannot_be_interrupted_ends_the_program(monkeypatch, patient, capsys):
    ends = []
    monkeypatch.setattr(module, "LIMIT_S", 0.1)
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    monkeypatch.setattr(module.os, "_exit", ends.append)

    def hangs(_):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        try:
            wait_until(lambda: ends, 10, "no end")
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})

    run_check(hangs, patient)
    assert ends == [1]
    assert "no answer within 0.1 s" in capsys.readouterr().out


def test_versions_out_of_bounds_and_missing_packages(monkeypatch, patient):
    assert module.versions(patient).status == "ok"
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0" if name == "torch" else version(name))
    check = module.versions(patient)
    assert check.status == "warn"
    assert check.text.startswith("torch 1.0 is not ")
    assert "pip install" in check.cure
    monkeypatch.setattr(module, "_version", lambda name: None if name == "ray" else version(name))
    check = module.versions(patient)
    assert check.status == "fail"
    assert "ray is missing" in check.text
    monkeypatch.setattr(module.platform, "python_version", lambda: "3.9.1")
    assert "python 3.9.1 is not >=" in module.versions(patient).text


def test_extras_follow_the_metadata(monkeypatch, patient):
    requires = ["torch", "numpy>=1; extra == 'maths'", "no-such-thing-at-all; extra == 'dreams'"]
    monkeypatch.setattr(metadata, "requires", lambda _: requires)
    declared = SimpleNamespace(get_all=lambda _: ["maths", "dreams"])
    monkeypatch.setattr(metadata, "metadata", lambda _: declared)
    expected = "maths: yes; dreams: pip install 'ssm-metarl[dreams]' (no-such-thing-at-all is missing)"
    assert module.extras(patient) == Check("ok", expected)
    monkeypatch.setattr(declared, "get_all", lambda _: None)
    assert module.extras(patient) == Check("ok", "there are none")


def test_gpu_is_not_needed(patient):
    check = module.gpu(patient)
    assert check.status == "ok"
    assert "none is needed" in check.text


def test_cores_that_the_container_may_not_use(monkeypatch, patient):
    monkeypatch.setattr(machine, "num_cores", lambda: 8)
    monkeypatch.setattr(machine, "cpu_limit", lambda: None)
    assert module.cores(patient) == Check("ok", "8 for this process")
    monkeypatch.setattr(machine, "cpu_limit", lambda: 2.5)
    check = module.cores(patient)
    assert check.status == "warn"
    assert check.cure.startswith("--workers.num_workers 2;")


def test_threads(monkeypatch, patient):
    import torch

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert module.threads(patient).status == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MALLOC_TOP_PAD_")
    check = module.threads(patient)
    assert check.status == "warn"
    assert check.text.endswith("OMP_NUM_THREADS, MALLOC_TOP_PAD_")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert module.threads(patient).status == "fail"


def test_memory(monkeypatch, patient):
    monkeypatch.setattr(machine, "memory", lambda: (16 * GB, GB // 2))
    assert module.memory(patient) == Check("ok", "500 MB of 16.0 GB available")
    monkeypatch.setattr(machine, "memory", lambda: None)
    for check in (module.memory, module.shared_memory, module.room_for_workers):
        assert check(patient) == Check("ok", "not known here")


def test_small_shared_memory(monkeypatch, patient, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module, "SHM", tmp_path)
    monkeypatch.setattr(machine, "memory", lambda: (16 * GB, 10 * GB))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(64 * 10**6, 0, 64 * 10**6))
    check = module.shared_memory(patient)
    assert check.status == "warn"
    assert "64 MB of 64 MB free, but Ray wants 3.0 GB" in check.text
    assert check.cure.startswith("docker run --shm-size=4g")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(4 * GB, 0, 4 * GB))
    assert module.shared_memory(patient).status == "ok"


def test_folder_of_runs(monkeypatch, patient, tmp_path):
    monkeypatch.chdir(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(100 * GB, 0, 9 * GB))
    check = module.runs_folder(patient)
    assert check == Check("ok", f"{tmp_path / 'runs'} can be written, 9.0 GB free")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(100 * GB, 0, GB // 10))
    assert module.runs_folder(patient).status == "warn"
    # A file where the folder should be: what root, too, cannot write to.
    (tmp_path / "runs").write_text("")
    check = module.runs_folder(patient)
    assert check.status == "fail"
    assert "cannot be written" in check.text
    assert "--run.dir" in check.cure


def test_folder_of_ray(monkeypatch, patient, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(100 * GB, 0, 6 * GB))
    check = module.ray_folder(patient)
    assert check.status == "ok"
    assert str(tmp_path / "not" / "there" / "ray") in check.text
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(100 * GB, 0, 4 * GB))
    assert module.ray_folder(patient).status == "warn"


def summary(params_sha256):
    return SimpleNamespace(pre=-80.0, post=-40.0, params_sha256=params_sha256)


def test_parameters_that_differ_fail(monkeypatch, patient):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(module, "_train", lambda *_, **__: (summary("a" * 64), 1.0))
    assert module.training_in_worker(patient).text.endswith("nothing to compare it with")
    check = module.training(patient)
    assert check.text == "return -80 before adaptation, -40 after, params_sha256 aaaaaaaaaaaa in 1.0 s, without Ray"
    assert module.training_in_worker(patient).status == "ok"
    monkeypatch.setattr(module, "_train", lambda *_, **__: (summary("b" * 64), 1.0))
    check = module.training_in_worker(patient)
    assert check.status == "fail"
    assert "other parameters than without Ray" in check.text


def test_ray_that_does_not_start(monkeypatch, patient):
    import ray

    from ssm_metarl.runtime import pool

    def fails(_):
        raise ConnectionError("Failed to connect to Ray cluster at nowhere:1")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(pool, "start_ray", fails)
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    check = module.ray_start(patient)
    assert check.status == "fail"
    assert check.text.startswith("RAY_ADDRESS=nowhere:1: Failed to connect")
    assert "--workers.num_workers 0" in check.cure
    assert module.training_in_worker(patient) == Check("fail", "not tried, as Ray does not run")
    assert module.ray_stop(patient) == Check("ok", "nothing to stop")
    monkeypatch.setattr(module, "LIMIT_S", 0.1)
    monkeypatch.setattr(pool, "start_ray", lambda _: time.sleep(10))
    check = run_check(module.ray_start, patient)
    assert check.text == "RAY_ADDRESS=nowhere:1: no answer within 0.1 s"
    monkeypatch.setattr(pool, "start_ray", fails)
    monkeypatch.delenv("RAY_ADDRESS")
    assert "logs" in module.ray_start(patient).cure


def test_a_cluster_is_named_and_left(monkeypatch, patient):
    import ray

    from ssm_metarl.runtime import pool

    left = []
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(pool, "start_ray", lambda _: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.7:6379"))
    monkeypatch.setattr(ray, "shutdown", lambda: left.append(True))
    assert module.ray_start(patient).text.startswith("joined the cluster at 10.0.0.7:6379 (RAY_ADDRESS), 64 CPUs, in ")
    assert module.ray_stop(patient).text.startswith("left in ")
    assert left
    monkeypatch.setattr(pool, "start_ray", lambda _: False)
    assert module.ray_start(patient) == Check("ok", "runs in this process already, with 64 CPUs")
    assert module.ray_stop(patient).text == "nothing to stop", "a Ray that somebody else started is not ours to stop"


def test_room_for_workers(monkeypatch, patient):
    patient.worker_bytes = GB // 2
    monkeypatch.setattr(machine, "num_cores", lambda: 4)
    monkeypatch.setattr(machine, "memory", lambda: (16 * GB, 3 * GB))
    assert module.room_for_workers(patient) == Check("ok", "a worker took 500 MB; memory is left for about 6 like it")
    monkeypatch.setattr(machine, "memory", lambda: (2 * GB, GB))
    check = module.room_for_workers(patient)
    assert check.status == "warn"
    assert check.cure.startswith("--workers.num_workers 2")
