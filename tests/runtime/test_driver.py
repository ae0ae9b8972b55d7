"""The driver in this process: bookkeeping, resuming, refusing. No Ray."""

import json
import shutil

import numpy as np
import pytest

from ssm_metarl.config import ConfigError, load_config
from ssm_metarl.runtime.checkpoint import CheckpointError
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.metrics import Sink, params_sha256, read_metrics
from ssm_metarl.runtime.pool import LocalPool
from ssm_metarl.runtime.run_folder import locked
from ssm_metarl.runtime.worker import TaskWorker
from ssm_metarl.types import SharedState, Stream

FIELDS = {
    "iteration",
    "return_pre_adaptation",
    "return_post_adaptation",
    "meta_loss",
    "grad_norm",
    "num_env_steps",
    "iteration_s",
    "rollout_s",
    "gradient_s",
    "outer_s",
    "waiting_s",
    "env_steps_per_s",
    "workers",
    "respawns",
    "retries",
    "recollections",
    "failed_saves",
    "params_sha256",
}


def small(folder, **settings):
    """A run of about a second."""
    tiny = {
        "iterations": 3,
        "tasks_per_iteration": 3,
        "env.horizon": 8,
        "env.episodes_per_task": 4,
        "policy.hidden_dim": 4,
        "eval.num_tasks": 3,
        "workers.num_workers": 0,
        "checkpoint.every": 1,
        "run.dir": str(folder),
        "run.name": "small",
    }
    return load_config(None, tiny | settings)


def timeless(records):
    """Without what the clock decides."""
    return [{key: value for key, value in record.items() if not key.endswith("_s")} for record in records]


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "promp"])
def test_a_run_leaves_its_books_in_order(tmp_path, algorithm):
    trainer = MetaTrainer(small(tmp_path, algorithm=algorithm))
    before = params_sha256(trainer.params_P)
    summary = trainer.run()
    records = read_metrics(tmp_path / "small")
    assert [record["iteration"] for record in records] == [0, 1, 2]
    assert set(records[0]) == FIELDS
    assert (
        records[0]["num_env_steps"] == 3 * 4 * 8 * 2 and records[2]["num_env_steps"] == 3 * records[0]["num_env_steps"]
    )
    hashes = [before, *(record["params_sha256"] for record in records)]
    assert len(set(hashes)) == 4 and hashes[-1] == summary.params_sha256
    assert summary.evaluation.returns["meta"].shape == (3, 4)
    assert summary.pre == pytest.approx(summary.evaluation.returns["meta"][:, 0].mean())
    assert summary.post == pytest.approx(summary.evaluation.returns["meta"][:, 1].mean())
    last = f"done: pre {summary.pre:.4g} post {summary.post:.4g} params_sha256 {hashes[-1]} run {tmp_path / 'small'}"
    assert str(summary) == last
    assert (tmp_path / "small" / "config.yaml").is_file() and any((tmp_path / "small" / "tb").iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        {"env.id": "ssm_metarl/CartPole-v0", "policy.core": "gru"},
        {"env.id": "ssm_metarl/Pendulum-v0", "policy.core": "lti", "inner.num_steps": 2},
        {"env.id": "CartPole-v1", "env.vary": {"length": {"uniform": [0.3, 1.0]}}, "policy.core": "mlp"},
        {"env.id": "MountainCarContinuous-v0", "env.vary": {"power": {"scale": [0.5, 2.0]}}},
        {"env.id": "Pendulum-v1", "env.vary": {"m": {"choice": [0.5, 1.0, 2.0]}}, "inner.num_steps": 0},
        {"policy.inputs": ["observation", "previous_action", "previous_reward", "episode_start"]},
        {"inner.estimator": "dice", "algorithm": "maml", "policy.num_layers": 2},
    ],
    ids=str,
)
def test_every_kind_of_family_core_and_input_trains(tmp_path, settings):
    summary = MetaTrainer(small(tmp_path, **{"env.horizon": 30, **settings})).run()
    assert np.isfinite(summary.evaluation.returns["meta"]).all()
    assert len({record["params_sha256"] for record in read_metrics(summary.folder)}) == 3


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    runs = [MetaTrainer(small(tmp_path / str(n), seed=seed)).run() for n, seed in enumerate((5, 5, 6))]
    assert runs[0].params_sha256 == runs[1].params_sha256 != runs[2].params_sha256
    np.testing.assert_array_equal(runs[0].evaluation.returns["meta"], runs[1].evaluation.returns["meta"])
    first, second = (timeless(read_metrics(run.folder)) for run in runs[:2])
    assert first == second


def test_a_run_taken_up_again_ends_where_the_whole_run_ends(tmp_path):
    whole = MetaTrainer(small(tmp_path / "whole")).run()
    MetaTrainer(small(tmp_path / "parts", iterations=2, **{"checkpoint.every": 5})).run()
    trainer = MetaTrainer(small(tmp_path / "parts"))
    assert trainer.iteration == 2
    parts = trainer.run()
    assert parts.params_sha256 == whole.params_sha256
    assert timeless(read_metrics(parts.folder)) == timeless(read_metrics(whole.folder))


def test_metrics_are_cut_to_the_checkpoint(tmp_path):
    config = small(tmp_path)
    whole = MetaTrainer(config).run()
    folder = tmp_path / "small"
    expected = timeless(read_metrics(folder))
    for path in sorted((folder / "checkpoints").iterdir())[1:]:
        (path / "manifest.json").unlink()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 3, "half a li')
    events = []
    trainer = MetaTrainer(config, [Listener(events)])
    assert trainer.iteration == 1
    assert [(event["event"], event["cause"][:29]) for event in events] == [
        ("warning", "skipped a damaged checkpoint:")
    ] * 2
    assert trainer.run().params_sha256 == whole.params_sha256
    assert timeless(read_metrics(folder)) == expected
    written = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event for event in written if event["event"] == "warning"] == events, "also what came before the folder"


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path):
    MetaTrainer(small(tmp_path)).run()
    with pytest.raises(
        ConfigError, match=r"inner.lr is 0.5, the existing run has 0.1\n(.*\n)*choose another run.name"
    ) as caught:
        MetaTrainer(small(tmp_path, **{"inner.lr": 0.5, "env.horizon": 9}))
    assert "env.horizon is 9, the existing run has 8" in str(caught.value)
    assert "workers" not in str(caught.value)
    MetaTrainer(small(tmp_path, iterations=4, **{"eval.num_tasks": 2, "checkpoint.keep": 1})).run()


def test_a_name_is_taken_even_before_its_first_checkpoint(tmp_path):
    MetaTrainer(small(tmp_path)).run()
    shutil.rmtree(tmp_path / "small" / "checkpoints")
    with pytest.raises(ConfigError, match=r"seed is 1, the existing run has 0"):
        MetaTrainer(small(tmp_path, seed=1))
    assert MetaTrainer(small(tmp_path)).iteration == 0


def test_two_processes_do_not_train_one_run(tmp_path):
    trainer = MetaTrainer(small(tmp_path))
    trainer.folder.mkdir()
    with locked(trainer.folder), pytest.raises(ConfigError, match=r"run.name: another process is training .*small"):
        trainer.run()
    trainer.run()


def test_checkpoints_on_another_filesystem(tmp_path):
    """The machine is lost with its disk; another one goes on from the store."""
    whole = MetaTrainer(small(tmp_path / "whole")).run()
    elsewhere = {"checkpoint.dir": f"memory://{tmp_path.name}"}
    MetaTrainer(small(tmp_path / "first", iterations=2, **elsewhere)).run()
    assert not (tmp_path / "first" / "small" / "checkpoints").exists()
    events = []
    trainer = MetaTrainer(small(tmp_path / "second", **elsewhere), [Listener(events)])
    assert trainer.iteration == 2
    summary = trainer.run()
    assert summary.params_sha256 == whole.params_sha256
    assert [record["iteration"] for record in read_metrics(summary.folder)] == [2]
    assert "has 0 of the 2 iterations done" in events[0]["cause"]
    with pytest.raises(ConfigError, match="--resume never"):
        MetaTrainer(small(tmp_path / "third", **elsewhere), resume="never")


class Listener(Sink):
    def __init__(self, events):
        self.events = events

    def event(self, event):
        self.events.append(event)


class Unreliable:
    """A storage whose writes fail as long as ``failures`` says so."""

    def __init__(self, storage, failures):
        self._storage, self.failures = storage, failures

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def write(self, name, data):
        if self.failures > 0 and name.endswith("manifest.json"):
            self.failures -= 1
            raise OSError(28, "No space left on device")
        self._storage.write(name, data)


def test_a_failed_save_is_said_and_training_goes_on(tmp_path):
    whole = MetaTrainer(small(tmp_path / "whole", iterations=5)).run()
    events = []
    trainer = MetaTrainer(small(tmp_path, iterations=5, **{"checkpoint.max_failures": 3}), [Listener(events)])
    trainer._storage = Unreliable(trainer._storage, failures=3)
    summary = trainer.run()
    assert summary.params_sha256 == whole.params_sha256
    assert [(event["event"], event["in_a_row"]) for event in events] == [
        ("save_failed", 1),
        ("save_failed", 2),
        ("save_failed", 3),
    ]
    assert "No space left" in events[0]["cause"] and events[0]["iteration"] == 1 and events[0]["time"][:2] == "20"
    assert sum(record["failed_saves"] for record in read_metrics(summary.folder)) == 3


def test_too_many_failed_saves_end_the_run_and_the_last_one_must_succeed(tmp_path):
    trainer = MetaTrainer(small(tmp_path, iterations=5, **{"checkpoint.max_failures": 1}))
    trainer._storage = Unreliable(trainer._storage, failures=2)
    with pytest.raises(
        CheckpointError, match=r"after 2 iterations could not be saved.*No space left.*nothing saved yet"
    ):
        trainer.run()
    trainer = MetaTrainer(small(tmp_path, iterations=2))
    trainer.save = lambda save=trainer.save: save() if trainer.iteration == 1 else fail(trainer, save)
    with pytest.raises(
        CheckpointError, match=r"after 2 iterations could not be saved.*saved up to iteration 1.*--run.name small"
    ):
        trainer.run()
    assert MetaTrainer(small(tmp_path, iterations=2)).iteration == 1


def fail(trainer, save):
    trainer._storage = Unreliable(trainer._storage, failures=1)
    save()


def test_lines_that_could_not_be_written_are_written_later(tmp_path):
    """The metrics file is out of reach in the second iteration; in the end every iteration stands once."""
    events = []

    class Saboteur(Listener):
        def iteration(self, record):
            path = tmp_path / "small" / "metrics.jsonl"
            if record["iteration"] == 1:
                path.rename(path.with_suffix(".away"))
            elif record["iteration"] == 2:
                path.with_suffix(".away").rename(path)

    summary = MetaTrainer(small(tmp_path), [Saboteur(events)]).run()
    assert [record["iteration"] for record in read_metrics(summary.folder)] == [0, 1, 2]
    assert [event["event"] for event in events] == ["warning", "save_failed"]
    assert "metrics.jsonl cannot be written for now" in events[0]["cause"]


def test_resume_never_and_from_a_path(tmp_path):
    summary = MetaTrainer(small(tmp_path)).run()
    with pytest.raises(ConfigError, match="--resume never"):
        MetaTrainer(small(tmp_path), resume="never")
    newest = max((summary.folder / "checkpoints").iterdir())
    trainer = MetaTrainer(small(tmp_path, **{"run.name": "other"}), resume=str(newest))
    assert trainer.iteration == 3 and params_sha256(trainer.params_P) == summary.params_sha256
    with pytest.raises(CheckpointError, match="cannot be read"):
        MetaTrainer(small(tmp_path, **{"run.name": "third"}), resume=str(tmp_path / "absent"))


def test_without_a_name_every_run_has_a_folder_of_its_own(tmp_path):
    folders = {MetaTrainer(small(tmp_path, **{"run.name": None})).folder for _ in range(3)}
    assert len(folders) == 3


def test_the_gradient_is_the_mean_over_tasks_and_the_first_step_is_adams(tmp_path):
    config = small(tmp_path, algorithm="maml", **{"outer.max_grad_norm": 1e9})
    trainer, pool = MetaTrainer(config), LocalPool(config, pytest.fail)
    shared, specs, before = trainer.shared, trainer._training_specs(), trainer.params_P
    gradients = [
        result.gradient_P.astype(np.float64) for result, _ in pool.map("adapt_and_collect", shared, specs, keep=True)
    ]
    mean = np.mean(gradients, axis=0)
    record = trainer.step(pool)
    assert record["grad_norm"] == pytest.approx(np.linalg.norm(mean), rel=1e-5)
    expected = before - config.outer.lr * mean / (np.abs(mean) + 1e-8)
    np.testing.assert_allclose(trainer.params_P, expected, atol=1e-6)


def test_later_passes_start_from_the_stored_batches(tmp_path):
    config = small(tmp_path)
    trainer, worker = MetaTrainer(config), TaskWorker(config)
    [spec, *_] = trainer._training_specs()
    shared = trainer.shared
    result, batches = worker.adapt_and_collect(shared, spec)
    assert len(batches) == 2 and spec.stream is Stream.TRAIN
    again = worker.revisit(shared, spec, batches)
    np.testing.assert_array_equal(result.gradient_P, again.gradient_P)
    moved = worker.revisit(SharedState(shared.params_P + 0.01), spec, batches)
    assert np.abs(moved.gradient_P - again.gradient_P).max() > 1e-6


def test_a_spec_is_worth_the_same_whatever_the_worker_did_before(tmp_path):
    config = small(tmp_path)
    trainer = MetaTrainer(config)
    shared, specs = trainer.shared, trainer._training_specs()
    fresh = [TaskWorker(config).adapt_and_collect(shared, spec)[0] for spec in specs]
    worker = TaskWorker(config)
    for expected, spec in reversed(list(zip(fresh, specs, strict=True))):
        found, _ = worker.adapt_and_collect(shared, spec)
        np.testing.assert_array_equal(found.gradient_P, expected.gradient_P)
        assert found.returns == expected.returns


def test_a_non_finite_gradient_stops_before_the_step_and_names_the_task(tmp_path):
    config = small(tmp_path)
    worker, trainer = TaskWorker(config), MetaTrainer(config)
    [spec, *_] = trainer._training_specs()
    _, batches = worker.adapt_and_collect(trainer.shared, spec)
    batches[1].advantage_TB[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"train iteration=0 task=0 .*not finite"):
        worker.revisit(trainer.shared, spec, batches)


def test_evaluation_does_not_depend_on_how_many_steps_are_asked_for(tmp_path):
    first = MetaTrainer(small(tmp_path / "a", **{"eval.num_steps": 3})).run()
    second = MetaTrainer(small(tmp_path / "b", **{"eval.num_steps": 0})).run()
    np.testing.assert_array_equal(first.evaluation.returns["meta"][:, :2], second.evaluation.returns["meta"])


def test_events_are_counted_and_written(tmp_path, monkeypatch):
    failures = [RuntimeError("a bad day")]
    work = TaskWorker.adapt_and_collect

    def flaky(self, shared, spec):
        if failures:
            raise failures.pop()
        return work(self, shared, spec)

    monkeypatch.setattr(TaskWorker, "adapt_and_collect", flaky)
    summary = MetaTrainer(small(tmp_path)).run()
    assert [record["retries"] for record in read_metrics(summary.folder)] == [1, 0, 0]
    first = json.loads((summary.folder / "events.jsonl").read_text().splitlines()[0])
    assert first["event"] == "retry" and "a bad day" in first["cause"] and "task=0" in first["spec"]
