"""From returns to eval.json, tables and joint curves; then the command, on runs trained in this process."""

import json

import numpy as np
import pytest

from ssm_metarl.cli import main
from ssm_metarl.config import ConfigError, TrainConfig, load_config
from ssm_metarl.evaluation.curves import join, table
from ssm_metarl.evaluation.evaluate import adaptation_table, write_evaluation
from ssm_metarl.evaluation.statistics import bootstrap, bootstrap_mean, paired_difference, probability_of_improvement
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.held_out import Evaluation

TASKS, STEPS = 6, 2


def make_evaluation(seed=0, strategies=("none", "online", "meta"), offset=0.0, success=False, tasks=TASKS):
    rng = np.random.default_rng(seed)
    returns = {name: offset + rng.normal(size=(tasks, STEPS + 1)) for name in strategies}
    skipped = {name: len(name) - 4 for name in strategies}
    successes = {name: rng.integers(0, 11, size=(tasks, STEPS + 1)) / 10 for name in strategies} if success else None
    tasks = [{"goal_x": 0.1 * i, "goal_y": 0.5} for i in range(tasks)]
    return Evaluation(split="test", tasks=tasks, returns=returns, skipped=skipped, successes=successes)


def record_of(tmp_path, seed=0, config=None, **how):
    return write_evaluation(
        tmp_path, config or TrainConfig(seed=seed), make_evaluation(seed, **how), np.full(3, seed, np.float32)
    )


def test_eval_json_says_everything(tmp_path):
    evaluation = make_evaluation(success=True)
    record = write_evaluation(tmp_path, TrainConfig(seed=7, inner={"lr": 0.3}), evaluation, np.zeros(3, np.float32))
    assert record == json.loads((tmp_path / "eval.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]
    assert record["env"] == "ssm_metarl/Navigation2D-v0" and record["split"] == "test" and record["horizon"] == 100
    assert record["seed"] == 7 and record["episodes_per_task"] == 10 and record["inner"]["lr"] == 0.3
    assert record["adapter"]["trust_region"] == 1.0 and record["tasks"] == evaluation.tasks
    assert len(record["params_sha256"]) == 64 and "numpy" in record["versions"]
    assert "tasks of one run" in record["interval"]
    assert list(record["strategies"]) == ["none", "online", "meta"]
    for name, result in record["strategies"].items():
        returns_KS, rates_KS = evaluation.returns[name], evaluation.successes[name]
        np.testing.assert_array_equal(result["returns"], returns_KS)
        np.testing.assert_array_equal(result["success"]["rates"], rates_KS)
        assert result["skipped"] == {"none": 0, "online": 2, "meta": 0}[name]
        for k in range(STEPS + 1):
            assert result["mean"][k] == bootstrap_mean(returns_KS[:, k])._asdict()
            assert result["iqm"][k] == bootstrap(returns_KS[:, k], "iqm")._asdict()
            assert result["success"]["mean"][k] == bootstrap_mean(rates_KS[:, k])._asdict()


def test_eval_json_compares_strategies_task_by_task(tmp_path):
    evaluation = make_evaluation()
    record = write_evaluation(tmp_path, TrainConfig(), evaluation, np.zeros(3, np.float32))
    assert list(record["differences"]) == ["meta - none", "online - none", "meta - online"]
    assert list(record["improvement"]) == ["meta > none", "online > none", "meta > online"]
    for a, b in (("meta", "none"), ("online", "none"), ("meta", "online")):
        for k in range(STEPS + 1):
            pair = evaluation.returns[a][:, k], evaluation.returns[b][:, k]
            assert record["differences"][f"{a} - {b}"][k] == paired_difference(*pair)._asdict()
            assert record["improvement"][f"{a} > {b}"][k] == probability_of_improvement(*pair)._asdict()
    assert record["strategies"]["meta"]["success"] is None


def test_strategies_that_were_not_measured_are_not_compared(tmp_path):
    record = record_of(tmp_path, strategies=("meta",))
    assert list(record["strategies"]) == ["meta"] and record["differences"] == record["improvement"] == {}
    text = table(join({"a": record}))
    assert "meta" in text and "difference" not in text
    assert list(record_of(tmp_path, strategies=("none", "meta"))["differences"]) == ["meta - none"]


def test_the_table_has_a_row_per_step_and_a_column_per_strategy():
    evaluation = make_evaluation(success=True)
    lines = adaptation_table(TrainConfig(), evaluation).splitlines()
    assert "Navigation2D" in lines[0] and "6 held-out tasks (test split), 10 episodes each" in lines[0]
    assert "tasks of one run" in lines[1]
    means, differences, successes = (lines.index(line) for line in lines if line.endswith("[95 %]"))
    assert lines[means + 1].split() == ["steps", "episodes", "seen", "none", "online", "meta"]
    for k in range(STEPS + 1):
        row = lines[means + 2 + k]
        assert row.split()[:2] == [str(k), str(10 * k)]
        for name in evaluation.returns:
            assert str(bootstrap_mean(evaluation.returns[name][:, k])) in row
            assert str(bootstrap_mean(evaluation.successes[name][:, k])) in lines[successes + 2 + k]
        for name in ("meta", "online"):
            pair = evaluation.returns[name][:, k], evaluation.returns["none"][:, k]
            assert str(paired_difference(*pair)) in lines[differences + 2 + k]
    assert "meta - none" in lines[differences + 1] and "online - none" in lines[differences + 1]
    assert lines[-1].startswith("online:") and lines[-1].endswith("in 2 of its 12 calls")


@pytest.mark.parametrize("offset", [0.0, -999.0, 54321.0])
def test_the_table_fits_a_terminal(offset):
    lines = adaptation_table(TrainConfig(), make_evaluation(offset=offset)).splitlines()
    assert max(map(len, lines)) <= 110
    columns = [line for line in lines if line.startswith(("steps", "    "))]
    assert {len(line) for line in columns[: STEPS + 2]} == {len(columns[0])}, "columns are aligned"


def test_joint_curves_resample_runs_and_tasks(tmp_path):
    records = {f"run{seed}": record_of(tmp_path, seed) for seed in (2, 0, 1)}
    curves = join(records)
    evaluations = [make_evaluation(seed) for seed in (2, 0, 1)]
    assert curves.num_runs == 3
    for name in ("none", "online", "meta"):
        np.testing.assert_array_equal(curves.returns[name], [each.returns[name] for each in evaluations])
    meta, none = curves.returns["meta"], curves.returns["none"]
    assert curves.mean("meta")[1] == bootstrap_mean(meta[:, :, 1])
    assert curves.iqm("meta")[2] == bootstrap(meta[:, :, 2], "iqm")
    assert curves.difference("meta", "none")[2] == paired_difference(meta[:, :, 2], none[:, :, 2])
    assert curves.improvement("meta", "none")[0] == probability_of_improvement(meta[:, :, 0], none[:, :, 0])
    assert curves.success("meta") is None
    text = table(curves)
    assert "in 6 of its 36 calls" in text
    assert "3 runs" in text and "hierarchical" in text and str(curves.mean("online")[1]) in text


def test_joint_success_rates(tmp_path):
    records = {f"run{seed}": record_of(tmp_path, seed, success=True) for seed in range(2)}
    curves = join(records)
    assert curves.success("meta")[1] == bootstrap_mean(curves.successes["meta"][:, :, 1])
    assert curves.successes["none"].shape == (2, TASKS, STEPS + 1)


def test_joint_curves_are_of_the_strategies_that_all_have(tmp_path):
    curves = join({"a": record_of(tmp_path, 0), "b": record_of(tmp_path, 1, strategies=("none", "meta"))})
    assert list(curves.returns) == ["none", "meta"] and curves.pairs == [("meta", "none")]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"inner": {"lr": 0.25}}, "inner.lr: 0.1 and 0.25"),
        ({"adapter": {"trust_region": 2.0}}, "adapter.trust_region: 1.0 and 2.0"),
        ({"env": {"episodes_per_task": 3}}, "env.episodes_per_task: 10 and 3"),
        ({"env": {"horizon": 50}}, "env.horizon: 100 and 50"),
        ({"env": {"id": "ssm_metarl/CartPole-v0"}}, "env.id: ssm_metarl/Navigation2D-v0 and ssm_metarl/CartPole-v0"),
    ],
)
def test_runs_measured_differently_are_not_joined(tmp_path, settings, expected):
    records = {"a": record_of(tmp_path, 0), "b": record_of(tmp_path, 1, TrainConfig(seed=1, **settings))}
    with pytest.raises(ConfigError, match="a and b were not measured alike") as error:
        join(records)
    assert expected in str(error.value)
    if "env" not in settings:
        assert str(error.value).count("\n  ") == 1, "nothing else differs"


def test_other_tasks_or_steps_are_not_joined(tmp_path):
    first, second = record_of(tmp_path, 0), record_of(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"eval\.num_tasks: 6 and 4"):
        join({"a": first, "b": record_of(tmp_path, 1, tasks=4)})
    with pytest.raises(ConfigError, match=r"env\.vary \(the held-out tasks\) differs"):
        join({"a": first, "b": {**second, "tasks": second["tasks"][::-1]}})
    shorter = {name: {**result, "returns": [[0.0, 1.0]] * TASKS} for name, result in second["strategies"].items()}
    with pytest.raises(ConfigError, match="number of adaptation steps: 2 and 1"):
        join({"a": first, "b": {**second, "strategies": shorter}})


def test_one_run_is_not_counted_twice(tmp_path):
    record = record_of(tmp_path)
    with pytest.raises(ConfigError, match="a and copy have the same parameters"):
        join({"a": record, "copy": record})


TINY = {
    "iterations": 1,
    "tasks_per_iteration": 2,
    "env.horizon": 5,
    "env.episodes_per_task": 2,
    "policy.hidden_dim": 4,
    "eval.num_tasks": 3,
    "eval.num_steps": 1,
    "workers.num_workers": 0,
}


def train(folder, name, **settings):
    MetaTrainer(load_config(None, {**TINY, "run.dir": str(folder), "run.name": name, **settings})).run()
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in the seed, and one of another inner step size."""
    folder = tmp_path_factory.mktemp("runs")
    return train(folder, "a", seed=0), train(folder, "b", seed=1), train(folder, "c", seed=2, **{"inner.lr": 0.2})


def evaluate(*words):
    """Exit status of the command."""
    try:
        return main(["evaluate", *map(str, words), "--workers.num_workers", "0"])
    except SystemExit as stop:
        return stop.code


def test_several_runs_have_a_table_each_and_one_together(runs, capsys):
    a, b, _ = runs
    assert evaluate(a, b) == 0
    out = capsys.readouterr().out
    records = {str(run): json.loads((run / "eval.json").read_text()) for run in (a, b)}
    assert [record["seed"] for record in records.values()] == [0, 1]
    assert out.count("mean return [95 %]") == 3
    for name, record in records.items():
        assert f"{name}: {table(join({name: record}))}\n" in out
    assert out.endswith(table(join(records)) + "\n")


def test_runs_that_cannot_be_joined_are_refused_before_any_is_evaluated(runs, tmp_path, capsys, monkeypatch):
    from ssm_metarl.runtime.worker import TaskWorker

    monkeypatch.setattr(TaskWorker, "evaluate", lambda *_: pytest.fail("too early"))
    a, _, c = runs
    assert evaluate(a, c) == 2
    error = capsys.readouterr().err
    assert "inner.lr: 0.1 and 0.2" in error and str(a) in error and str(c) in error and "Traceback" not in error
    assert evaluate(a, a.parent / "." / "a") == 2
    assert "named twice" in capsys.readouterr().err
    assert evaluate(a, tmp_path) == 2
    assert "config.yaml" in capsys.readouterr().err


def test_runs_can_be_made_alike(runs, capsys):
    a, _, c = runs
    assert evaluate(a, c, "--inner.lr", "0.2", "--eval.num_tasks", "4") == 0
    assert "4 held-out tasks (test split), 2 episodes each, 2 runs" in capsys.readouterr().out


def test_a_run_may_be_given_by_its_name(runs, capsys):
    assert evaluate("b", "--run.dir", runs[1].parent) == 0
    assert "3 held-out tasks" in capsys.readouterr().out
    assert evaluate("no-such-run", "--run.dir", runs[1].parent) == 2
    assert "no-such-run" in capsys.readouterr().err


def test_a_task_that_fails_midway_is_no_wrong_setting(runs, capsys, monkeypatch):
    from ssm_metarl.runtime.worker import TaskWorker

    def broken(self, shared, spec):
        raise OSError("simulator gone")

    monkeypatch.setattr(TaskWorker, "evaluate", broken)
    assert evaluate(runs[0]) == 1
    error = capsys.readouterr().err
    assert "evaluate iteration=0 task=0" in error and "simulator gone" in error and "Traceback" not in error


def test_a_wrong_environment_is_a_wrong_setting(runs, capsys):
    assert evaluate(runs[0], "--env.id", "ssm_metarl/Navigation3D-v0") == 2
    error = capsys.readouterr().err
    assert "Navigation2D-v0" in error and "Traceback" not in error


def test_a_run_without_a_checkpoint_is_told_to_train(runs, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((runs[0] / "config.yaml").read_text())
    assert evaluate(tmp_path) == 1
    assert "no checkpoint" in capsys.readouterr().err
    assert evaluate() == 2
