"""Jobs without a cluster: what is refused before anything is sent, what is sent, and how a job is followed."""

import gc
import io
import os
import shlex
import signal
import socket
import threading
import time
import zipfile

import pytest
import yaml
from dashboard import dashboard
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import wait_until

from ssm_metarl import cli, doctor
from ssm_metarl.config import ConfigError, load_config
from ssm_metarl.options import parse
from ssm_metarl.runtime import auth, job_client
from ssm_metarl.runtime.job_client import Cluster, Detached, JobError
from ssm_metarl.runtime.jobs import Job
from ssm_metarl.runtime.process import ENVIRONMENT

LASTING = {"run.name": "first", "run.dir": "/runs"}
SECRET = "5ecret" * 5

# Ray's client does not close its websocket when it is left in the midst.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    """No token, no cluster; what the client sets in the environment is undone."""
    for name in (auth.MODE, auth.TOKEN, auth.TOKEN_PATH, auth.IN_JOB, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


@pytest.fixture
def fast(monkeypatch):
    for name, seconds in {"QUIET_S": 0.1, "RETRY_S": 0.02, "PATIENCE_S": 0.5, "ANSWER_S": 0.5, "SUBMIT_S": 0.5}.items():
        monkeypatch.setattr(job_client, name, seconds)


@pytest.fixture
def server():
    with dashboard() as served:
        yield served
    gc.collect()  # While the warning of `pytestmark` is ignored.


@pytest.fixture
def folder(tmp_path):
    """A folder to send, with a configuration."""
    path = tmp_path / "project"
    path.mkdir()
    (path / "first.yaml").write_text("iterations: 3\nrun: {name: first, dir: /runs}\n")
    return path


def prepared(folder, **overrides):
    return Job.prepare(folder / "first.yaml", overrides, folder)


# -- tokens


@pytest.mark.parametrize(
    ("address", "is_own"),
    [
        ("http://127.0.0.1:8265", True),
        ("127.8.9.1:6379", True),
        ("localhost:6379", True),
        ("ray://localhost:10001", True),
        ("[::1]:6379", True),
        ("http://[::ffff:127.0.0.1]:8265", True),
        ("auto", True),
        ("local", True),
        ("10.0.0.5:6379", False),
        ("http://head:8265", False),
        ("http://localhost.example.org:8265", False),
        ("http://127.0.0.1@example.org:8265", False),
        ("[2001:db8::1]:6379", False),
        ("0:6379", False),
        ("http://[:8265", False),
        (":6379", False),
    ],
)
def test_loopback(address, is_own):
    assert auth.is_loopback(address) is is_own


def test_a_cluster_elsewhere_needs_a_token(monkeypatch, tmp_path):
    """The words to turn it on, for the cluster and for here; and none for this machine's own."""
    auth.require_token("127.0.0.1:6379")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=10.0.0.5:6379 is not on this machine") as refusal:
        auth.require_token("10.0.0.5:6379")
    for words in ("RAY_AUTH_MODE=token before ray start", "ray get-auth-token --generate", "RAY_AUTH_TOKEN_PATH"):
        assert words in str(refusal.value)
    monkeypatch.setenv(auth.MODE, "disabled")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE is disabled"):
        auth.require_token("10.0.0.5:6379")
    monkeypatch.setenv(auth.MODE, "Token")
    for address in ("10.0.0.5:6379", "127.0.0.1:6379"):  # Ray would end the process without a word of help.
        with pytest.raises(ConfigError, match=r"auth_token cannot be read: No such file"):
            auth.require_token(address)
    monkeypatch.setenv(auth.TOKEN_PATH, str(tmp_path / "empty"))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="empty is empty"):
        auth.require_token("10.0.0.5:6379")
    (tmp_path / "empty").write_text(SECRET)
    auth.require_token("10.0.0.5:6379")
    monkeypatch.delenv(auth.TOKEN_PATH)
    monkeypatch.setenv(auth.TOKEN, SECRET)
    auth.require_token("10.0.0.5:6379")


def test_a_job_may_join_its_own_cluster(monkeypatch):
    monkeypatch.setenv(auth.IN_JOB, "{}")
    auth.require_token("10.0.0.5:6379")


def test_the_token_file_is_private_from_the_start(monkeypatch, tmp_path):
    path = tmp_path / "home" / ".ray" / "auth_token"
    before = os.umask(0)
    try:
        auth.private_token_file(make=False)
        assert not path.exists()
        auth.private_token_file()
    finally:
        os.umask(before)
    token = path.read_text()
    assert len(token) == 64 and int(token, 16), "as Ray makes them"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [entry.name for entry in path.parent.iterdir()] == ["auth_token"], "nothing is left of the making"
    path.chmod(0o644)
    auth.private_token_file()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == token


@pytest.mark.parametrize(("name", "value"), [(auth.MODE, "disabled"), (auth.TOKEN, SECRET), (auth.TOKEN_PATH, "/a")])
def test_no_token_file_is_made_that_ray_would_not_use(monkeypatch, tmp_path, name, value):
    monkeypatch.setenv(name, value)
    auth.private_token_file()
    assert not (tmp_path / "home" / ".ray").exists()


def test_two_that_make_a_token_file_agree(tmp_path):
    threads = [threading.Thread(target=auth.private_token_file) for _ in range(8)]
    seen = set()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "home" / ".ray" / "auth_token").exists():
            seen.add((tmp_path / "home" / ".ray" / "auth_token").read_text())
    assert len(seen) <= 1 and "" not in seen


def test_a_token_file_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "home" / ".ray").write_text("a file in its way")
    with pytest.raises(ConfigError, match=r"Ray's token cannot be kept in .*auth_token: .*; set HOME"):
        auth.private_token_file()


def test_doctor_says_who_can_read_the_token(tmp_path):
    path = tmp_path / "home" / ".ray" / "auth_token"
    assert doctor.token(None) == doctor.Check("ok", f"none yet; Ray makes {path}")
    auth.private_token_file()
    assert doctor.token(None) == doctor.Check("ok", f"{path}, which only you can read")
    path.chmod(0o640)
    assert doctor.token(None) == doctor.Check("warn", f"others can read {path}", f"chmod 600 {path}")


# -- what is refused before anything is sent


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"run.name": None}, "run.name: a job needs a name"),
        ({"run.dir": "runs"}, "run.dir = runs must be an absolute path on the cluster or a URI.*does not outlive it"),
        ({"checkpoint.dir": "~/here"}, "checkpoint.dir = ~/here must be an absolute path"),
        ({"run.dir": "s3://key:word@bucket/runs"}, "run.dir: holds a password"),
        ({"env.id": "Nope-v0"}, "^command line: env.id: .*Nope-v0"),
        ({"inner.lr": -1}, "inner.lr = -1 must be"),
    ],
)
def test_wrong_settings(folder, overrides, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        prepared(folder, **overrides)
    assert "word" not in str(refusal.value).replace("password", "")


def test_lasting_folders_may_be_uris(folder):
    job = prepared(folder, **{"run.dir": "s3://bucket/runs", "checkpoint.dir": "gs://bucket/checkpoints"})
    assert job.metadata["run_dir"] == "s3://bucket/runs"


def test_the_configuration_must_be_sent(folder, tmp_path):
    outside = tmp_path / "outside.yaml"
    outside.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=r"outside.yaml: lies outside of the folder that is sent"):
        Job.prepare(outside, LASTING, folder)
    (folder / "runs").mkdir()
    (folder / "runs" / "first.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="is left out of what is sent"):
        Job.prepare(folder / "runs" / "first.yaml", LASTING, folder)
    with pytest.raises(ConfigError, match="no such folder"):
        Job.prepare(None, LASTING, tmp_path / "nowhere")


def test_a_large_folder_is_refused_with_its_largest_parts(folder, monkeypatch):
    (folder / "data").mkdir()
    for name in ("data/a.bin", "data/b.bin", "c.bin"):
        with open(folder / name, "wb") as file:
            file.truncate(60_000_000)
    with pytest.raises(
        ConfigError, match=r"180 MB would be sent, .* at most 105 MB: data 120 MB, c.bin 60 MB"
    ) as error:
        prepared(folder)
    assert ".gitignore" in str(error.value)
    (folder / ".gitignore").write_text("data/*.bin\n")
    assert prepared(folder).files is not None


def test_what_is_left_out(folder, monkeypatch):
    monkeypatch.setenv(auth.TOKEN_PATH, str(folder / "token.txt"))
    kept = ["first.yaml", "mine/env.py", ".gitignore"]
    left = [
        *(".git/HEAD", ".venv/bin/python", "runs/first/metrics.jsonl", "mine/__pycache__/env.pyc", ".ruff_cache/x"),
        *("a.egg-info/x", "mine/secret.txt", "token.txt", ".ray/auth_token", ".env"),
    ]
    for name in (*kept, *left):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("secret.txt\n" if name == ".gitignore" else "seed: 1\n")
    assert sorted(map(str, Job.prepare(None, LASTING, folder).files)) == sorted(kept)


def test_a_ray_that_packs_in_another_way(folder, monkeypatch):
    """Then the cluster says what is too large."""
    from ray._private.runtime_env import packaging

    monkeypatch.delattr(packaging, "_dir_travel")
    job = prepared(folder)
    assert job.files is None
    assert str(job) == f"run first in /runs, with {folder}"


# -- what is sent


@pytest.fixture(scope="module")
def empty_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("empty")


NAMES = st.text(st.characters(categories=("L", "N"), include_characters="._-+=@"), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(
    name=NAMES.filter(lambda name: name[0] not in ".-"),
    where=st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=30),
    lr=st.floats(1e-12, 1e12),
    low=st.floats(-1e6, 1e6),
    strategies=st.lists(st.sampled_from(["none", "online", "meta"]), min_size=1, unique=True),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_command_says_the_same_there(empty_folder, name, where, lr, low, strategies, seed):
    """Whatever the shell, YAML and the command line's parser do to a value on its way."""
    overrides = {
        **{"run.name": name, "run.dir": f"/{where}", "inner.lr": lr, "seed": seed, "inner.first_order": True},
        **{"eval.strategies": strategies, "env.horizon": None, "checkpoint.dir": None},
        "env.vary.goal_x": {"uniform": [low, low + 1.0]},
    }
    try:
        job = Job.prepare(None, overrides, empty_folder)
    except ConfigError as error:
        assert "must be" in str(error)
        return
    program, *words = shlex.split(job.command)
    assert (program, words[:4]) == ("exec", ["python", "-m", "ssm_metarl", "train"])
    arguments, again = parse(cli.Train, words[4:], "ssm-metarl train")
    assert arguments == cli.Train(None, "auto")
    assert load_config(None, again) == job.config == load_config(None, overrides)


def test_what_a_job_says_of_itself(folder, monkeypatch):
    monkeypatch.setenv(auth.MODE, "token")
    monkeypatch.setenv(auth.TOKEN, SECRET)
    job = prepared(folder, **{"run.name": "a+b", "outer.lr": 0.5})
    assert (
        job.command == "exec python -m ssm_metarl train --config=first.yaml --resume=auto --run.name=a+b --outer.lr=0.5"
    )
    assert job.metadata["run_name"] == "a+b" and job.metadata["iterations"] == "3"
    assert job.runtime_env["env_vars"] == ENVIRONMENT
    assert job.submission_id.startswith("a-b-") and job.submission_id == job.submission_id
    assert prepared(folder).submission_id != prepared(folder).submission_id
    assert SECRET not in repr((job, job.command, job.metadata, job.runtime_env, str(job)))


def test_submit(server, folder, capsys, monkeypatch):
    """From the command line to the cluster: nothing of the token, and how to go on."""
    token = folder / "token.txt"
    token.write_text(SECRET)
    monkeypatch.setenv(auth.TOKEN_PATH, str(token))
    monkeypatch.chdir(folder)
    assert cli.main(["submit", "--address", server.address, "--config", "first.yaml", "--seed", "7"]) == 0
    [sent] = server.sent
    out = capsys.readouterr()
    job_id = sent["submission_id"]
    assert f"sent as job {job_id} to {server.address}: run first in /runs" in out.out
    assert f"--attach {job_id}" in out.out and f"--stop {job_id}" in out.out
    assert "asks nobody for a token" in out.err
    assert sent["entrypoint"].endswith("--config=first.yaml --resume=auto --seed=7")
    assert sent["runtime_env"]["working_dir"].startswith("gcs://")
    [package] = server.uploads
    assert zipfile.ZipFile(io.BytesIO(package)).namelist() == ["first.yaml"]
    assert SECRET not in repr(sent) and SECRET.encode() not in package


def run(*words):
    """The command's status, as a shell sees it."""
    try:
        return cli.main(["submit", *map(str, words)])
    except SystemExit as ended:
        return ended.code


def test_a_run_that_is_at_work_is_not_sent_again(server, folder, capsys):
    server.add("first-1", metadata={"run_name": "first", "run_dir": "/runs"})
    server.add("other", metadata=None)
    words = ("--address", server.address, "--config", folder / "first.yaml", "--working-dir", folder)
    assert run(*words) == 2
    assert "job first-1 trains first in /runs at this moment; to follow it: ssm-metarl" in capsys.readouterr().err
    assert run(*words, "--run.dir", "/elsewhere") == 0
    server.jobs["first-1"]["status"] = "FAILED"
    assert run(*words) == 0


# -- clusters that refuse, or are none


def test_no_cluster_there(folder, capsys, fast):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        words = ("--config", folder / "first.yaml", "--working-dir", folder)
        assert run("--address", address, *words) == 1
        assert "no cluster answers: Connection refused; is it the dashboard's address" in capsys.readouterr().err
        listener.listen()  # accepts, in the kernel, and never answers
        assert run("--address", address, *words) == 1
        assert "no cluster answers: timed out" in capsys.readouterr().err
    assert run("--address", "ray://127.0.0.1:10001", *words) == 2
    assert run("--address", "http://no.such.host.invalid:8265", *words) == 2, "not without a token"
    assert run("--attach", "first", *words) == 2
    assert capsys.readouterr().err.count("error: ") >= 3


def test_something_else_there(folder, capsys, fast):
    """Another server's words may be anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            for text in (b"\x00\x08\xff garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]"):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(10_000)
                    connection.sendall(text)

        thread = threading.Thread(target=answer)
        thread.start()
        for words in ("does not speak HTTP", "no Ray dashboard"):
            with pytest.raises(JobError, match=words) as refusal:
                Cluster(f"http://127.0.0.1:{listener.getsockname()[1]}")
            assert str(refusal.value).isprintable()
        thread.join()


@pytest.mark.parametrize(("status", "words"), [(401, "Authentication required"), (403, "Authentication failed")])
def test_a_cluster_that_refuses_the_token(server, monkeypatch, status, words):
    server.mode, server.refuses = "token", status
    with pytest.raises(ConfigError, match="wants a token, and RAY_AUTH_MODE is not set; here: export"):
        Cluster(server.address)
    monkeypatch.setenv(auth.MODE, "token")
    monkeypatch.setenv(auth.TOKEN, SECRET)
    with pytest.raises(ConfigError, match=f"refuses this token: {words}.*RAY_AUTH_TOKEN") as refusal:
        Cluster(server.address)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("mode", ["disabled", None])
def test_an_open_cluster_elsewhere_is_refused(server, monkeypatch, mode):
    """Even by one who has a token."""
    server.mode = mode
    monkeypatch.setattr(auth, "is_loopback", lambda address: False)
    with pytest.raises(ConfigError, match="is not on this machine"):
        Cluster(server.address)
    monkeypatch.setenv(auth.MODE, "token")
    monkeypatch.setenv(auth.TOKEN, SECRET)
    with pytest.raises(ConfigError, match=r"asks nobody for a token.*RAY_AUTH_MODE=token before ray start"):
        Cluster(server.address)


def test_the_address_that_is_given_counts(server, monkeypatch):
    """Ray's client would prefer its variables."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    server.add("first-1")
    assert Cluster(server.address).find("first-1") == "first-1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.address)
    assert Cluster().address == server.address


# -- following


LINES = "".join(f"iteration {i}, räysult\n" for i in range(20))


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "STOPPED"}, 143),
        ({"status": "FAILED", "driver_exit_code": 2, "message": "wrong from the start"}, 2),
        ({"status": "FAILED", "driver_exit_code": 143}, 143),
        ({"status": "FAILED", "driver_exit_code": -9}, 137),
    ],
)
def test_the_status_of_the_job(server, capsys, ending, status):
    server.logs["a"] = LINES
    server.add("a", **ending)
    assert run("--address", server.address, "--attach", "a") == status
    assert capsys.readouterr().out == LINES


def test_a_job_that_never_ran(server, capsys):
    server.add("a", "FAILED", message="runtime_env setup failed: no disk\nand more")
    assert run("--address", server.address, "--attach", "a") == 1
    assert capsys.readouterr().err == "error: job a did not run: runtime_env setup failed: no disk\n"
    server.add("b", "FAILED", driver_exit_code=1, message="...\n/usr/bin/python: No module named ssm_metarl\n")
    assert run("--address", server.address, "--attach", "b") == 1
    assert "the cluster has no ssm_metarl: install it in its image, or send a clone" in capsys.readouterr().err


def test_broken_connections_repeat_nothing(server, fast, capsys):
    server.logs["a"] = LINES
    server.add("a")
    server.tail_steps = [0, 3, 100, 50, 101, None]
    threading.Timer(1.0, lambda: server.jobs["a"].update(status="SUCCEEDED")).start()
    assert Cluster(server.address).follow("a") == 0
    assert capsys.readouterr().out == LINES


def test_a_quiet_log_is_not_a_dead_cluster(server, fast, capsys):
    server.logs["a"] = "begun\n"
    server.add("a")
    threading.Timer(1.5, lambda: server.jobs["a"].update(status="SUCCEEDED")).start()
    assert Cluster(server.address).follow("a") == 0


def test_a_cluster_that_goes_away_while_it_is_followed(server, fast, capsys):
    server.logs["a"] = LINES
    server.add("a")
    cluster = Cluster(server.address)
    threading.Timer(1.5, server.close).start()  # After some time without a word in the log.
    began = time.monotonic()
    with pytest.raises(JobError, match=r"it has not answered for 0.5 s; whether job a goes on is not known"):
        cluster.follow("a")
    assert 1.7 <= time.monotonic() - began < 15.0, "it might have come back"
    assert capsys.readouterr().out == LINES


def test_a_cluster_that_falls_silent_while_it_is_followed(server, fast):
    """A machine that loses its power closes no connection."""
    server.add("a")
    cluster = Cluster(server.address)
    threading.Timer(0.3, lambda: setattr(server, "hang", True)).start()
    with pytest.raises(JobError, match="timed out; it has not answered"):
        cluster.follow("a")


def test_the_time_until_a_silent_cluster_is_given_up_is_bounded():
    """A quiet log, one request, then requests until the patience is over."""
    request_s = job_client.CONNECT_S + job_client.ANSWER_S
    assert job_client.QUIET_S + job_client.PATIENCE_S + request_s + job_client.RETRY_S <= 30
    assert job_client.CONNECT_S + job_client.SUBMIT_S <= 30
    assert job_client.STOP_S + 5 <= 30


def test_ctrl_c_leaves_the_job_alone(server, fast, capsys):
    server.logs["a"] = LINES
    server.add("a", metadata={"run_name": "first"})
    main_thread = threading.get_ident()

    def interrupt():
        wait_until(lambda: server.told == len(LINES), 60, "the log was told")
        time.sleep(0.5)
        signal.pthread_kill(main_thread, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # A process of pytest-xdist ignores it.
    try:
        thread.start()
        assert run("--address", server.address, "--attach", "first") == 130
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    out = capsys.readouterr()
    assert out.out == LINES
    assert "job a goes on; to follow it: ssm-metarl submit" in out.err
    assert server.stopped == []
    assert issubclass(Detached, JobError)


def test_a_submission_that_is_not_answered(server, folder, fast):
    """It may have arrived: the id says how to find out."""
    cluster, job = Cluster(server.address), prepared(folder)
    server.hang = True
    with pytest.raises(JobError, match="timed out"):
        cluster.submit(job)


# -- finding and stopping


def test_finding(server):
    cluster = Cluster(server.address)
    with pytest.raises(ConfigError, match=r"first: .* has no job of this name or id; it has none at all"):
        cluster.find("first")
    named = {"metadata": {"run_name": "first"}}
    server.add("first-1", "FAILED", **named)
    server.add("first-2", "RUNNING", **named)
    server.add("first-3", "STOPPED", **named)
    server.add("driver", type="DRIVER", submission_id=None)
    assert cluster.find("first") == "first-2", "which runs"
    assert cluster.find("first-1") == "first-1"
    server.jobs["first-2"]["status"] = "SUCCEEDED"
    assert cluster.find("first") == "first-3", "the newest"
    with pytest.raises(ConfigError, match="it has first-1, first-2, first-3"):
        cluster.find("second")


def test_stopping(server, capsys):
    server.add("first-1", metadata={"run_name": "first"})
    server.logs["first-1"] = "iteration 3\nstopped by SIGTERM after 3 of 9 iterations; saved up to iteration 3\n"
    assert run("--address", server.address, "--stop", "first") == 0
    assert capsys.readouterr().out == (
        "job first-1 has ended: STOPPED; stopped by SIGTERM after 3 of 9 iterations; saved up to iteration 3\n"
    )
    assert run("--address", server.address, "--stop", "first") == 0
    assert "has ended already: STOPPED" in capsys.readouterr().out
    assert server.stopped == ["first-1"]


def test_a_job_that_does_not_stop(server, monkeypatch):
    monkeypatch.setattr(job_client, "STOP_S", 0.6)
    server.add("first-1")
    cluster = Cluster(server.address)
    monkeypatch.setattr(cluster._client, "stop_job", lambda job_id: True)
    with pytest.raises(JobError, match=r"was told to stop, and has not within 0.6 s: RUNNING"):
        cluster.stop("first-1")


@pytest.mark.parametrize("words", [("--stop", "a", "--attach", "a"), ("--stop", "a", "--seed", "1")])
def test_attach_and_stop_take_no_settings(server, words):
    assert run("--address", server.address, *words) == 2


def test_yaml_is_how_values_travel():
    """The assumption of the command's wording: one document, one line."""
    assert "\n" not in yaml.safe_dump({"a": [1.5] * 200}, default_flow_style=True, width=float("inf")).strip()
