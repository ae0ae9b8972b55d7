"""A run whose folder is in an object store: the same run, and any machine goes on with it. No Ray."""

import json

import pytest
from test_driver import small, timeless

from ssm_metarl.cli import main
from ssm_metarl.config import ConfigError
from ssm_metarl.deployment import load_policy
from ssm_metarl.runtime.checkpoint import CheckpointError
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.metrics import read_metrics
from ssm_metarl.runtime.mirror import fetch
from ssm_metarl.runtime.run_folder import open_folder
from ssm_metarl.runtime.storage import ArrowStorage, open_storage


@pytest.fixture
def where(tmp_path):
    """A folder of runs in a store that no other test uses."""
    return f"memory://{tmp_path.name}/runs"


def test_a_run_in_a_store_is_the_run_on_a_disk(where, tmp_path):
    on_disk, in_store = MetaTrainer(small(tmp_path)).run(), MetaTrainer(small(where)).run()
    assert str(in_store).endswith(f" run {where}/small")
    assert in_store.params_sha256 == on_disk.params_sha256
    assert timeless(read_metrics(open_folder(f"{where}/small").path)) == timeless(read_metrics(on_disk.folder))
    store = open_storage(f"{where}/small")
    assert sorted(store.files("")) == ["config.yaml", "events.jsonl", "metrics.jsonl"]
    assert sorted(store.folders()) == ["checkpoints", "tb"]  # the shards have become one file
    assert not list(tmp_path.glob("memory*"))


def test_another_machine_goes_on(where, tmp_path):
    """Two iterations that were never brought to an end, then a process that knows the URI alone."""
    whole = MetaTrainer(small(tmp_path)).run()
    trainer = MetaTrainer(small(where))
    with trainer.at_work() as pool:
        trainer.train(pool, 2)
        shards = open_storage(f"{where}/small")
        assert len(shards.files("metrics")) == 2, "one shard for each checkpoint"
        lines = [json.loads(shards.read(f"metrics/{name}"))["iteration"] for name in sorted(shards.files("metrics"))]
        assert lines == [0, 1]
        # The process dies here, as far as the store can tell.
        resumed = MetaTrainer(small(where))
        assert resumed.iteration == 2
        summary = resumed.run()
    assert summary.params_sha256 == whole.params_sha256
    assert timeless(read_metrics(summary.folder)) == timeless(read_metrics(whole.folder))


def test_lines_that_stand_in_a_shard_and_in_the_file_count_once(where, tmp_path):
    store = open_storage(f"{where}/small")
    store.make()
    store.write("metrics.jsonl", b'{"iteration": 0}\n{"iteration": 1}\n')
    store.write("metrics/000000000017.jsonl", b'{"iteration": 1}\n{"iteration": 2}\n')
    fetch(store, tmp_path)
    assert [record["iteration"] for record in read_metrics(tmp_path)] == [0, 1, 2]


def test_the_same_identity_is_asked_of_a_run_in_a_store(where):
    MetaTrainer(small(where)).run()
    with pytest.raises(ConfigError, match=r"inner.lr is 0.3, the existing run has 0.1"):
        MetaTrainer(small(where, **{"inner.lr": 0.3}))
    with pytest.raises(ConfigError, match="--resume never"):
        MetaTrainer(small(where), resume="never")


def test_commands_take_the_uri(where, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = (
        "--iterations 1 --tasks_per_iteration 2 --env.horizon 4 --env.episodes_per_task 2 --workers.num_workers 0 "
        "--eval.num_tasks 2 --run.name first"
    )
    assert main(["train", *tiny.split(), "--run.dir", where]) == 0
    assert f"report: {where}/first/report.html" in capsys.readouterr().out
    store = open_storage(f"{where}/first")
    store.remove("report.html")
    before = store.read("eval.json")
    assert main(["evaluate", f"{where}/first", "--eval.num_tasks", "3", "--workers.num_workers", "0"]) == 0
    assert store.read("eval.json") != before
    assert main(["report", "first", "--run.dir", where]) == 0
    assert f"{where}/first" in store.read("report.html").decode()
    assert main(["adapt", f"{where}/first", "--episodes", "4"]) == 0
    assert main(["export", f"{where}/first", "--out", "policy.safetensors"]) == 0
    assert load_policy(f"{where}/first").config.run.name == "first"
    assert {path.name for path in tmp_path.iterdir()} == {"policy.safetensors", "policy.yaml"}


def test_a_store_that_fails(where, monkeypatch):
    """Refused at the start; a failed save that the next one makes good; said at the end."""

    def fail(self, name, data):
        raise OSError("out of reach")

    write = ArrowStorage.write
    monkeypatch.setattr(ArrowStorage, "write", fail)
    with pytest.raises(ConfigError, match=r"run.dir or checkpoint.dir cannot be written to: out of reach"):
        MetaTrainer(small(where)).run()
    monkeypatch.setattr(ArrowStorage, "write", write)
    trainer = MetaTrainer(small(where))
    with trainer.at_work() as pool:
        monkeypatch.setattr(ArrowStorage, "write", fail)
        trainer.train(pool, 2)
        monkeypatch.setattr(ArrowStorage, "write", write)
        trainer.save()
        records = open_folder(f"{where}/small")
        assert [record["iteration"] for record in read_metrics(records.path)] == [0, 1]
        monkeypatch.setattr(ArrowStorage, "write", fail)
    assert "lacks the last lines of the run" in (trainer.folder / "events.jsonl").read_text()


def test_a_store_that_cannot_be_read(where, monkeypatch):
    def fail(self, folder):
        raise OSError("out of reach")

    monkeypatch.setattr(ArrowStorage, "files", fail)
    with pytest.raises(CheckpointError, match=r"run.dir: memory://.*small cannot be read: out of reach"):
        MetaTrainer(small(where))
    with pytest.raises(ConfigError, match=r"run.dir = nosuch://a/small is of no known kind"):
        MetaTrainer(small("nosuch://a"))
