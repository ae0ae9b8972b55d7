"""The commands in this process."""

import json

import pytest

from ssm_metarl.cli import main

TINY = {
    "iterations": 2,
    "tasks_per_iteration": 2,
    "env.horizon": 6,
    "env.episodes_per_task": 3,
    "policy.hidden_dim": 4,
    "eval.num_tasks": 3,
    "workers.num_workers": 0,
}


def words(folder, **settings):
    return [str(word) for key, value in {**TINY, "run.dir": folder, **settings}.items() for word in (f"--{key}", value)]


def test_train_then_evaluate(tmp_path, capsys):
    assert main(["train", *words(tmp_path, **{"run.name": "a"})]) == 0
    out = capsys.readouterr().out
    assert out.count("(before -> after adaptation)") == 2
    assert "steps   episodes seen" in out
    first = json.loads((tmp_path / "a" / "eval.json").read_text())
    (tmp_path / "a" / "eval.json").unlink()
    assert main(["evaluate", str(tmp_path / "a"), "--workers.num_workers", "0"]) == 0
    second = json.loads((tmp_path / "a" / "eval.json").read_text())
    assert first == second, "evaluating again must give the numbers that training printed"
    assert (tmp_path / "a" / "report.html").stat().st_size > 5000
    assert main(["evaluate", str(tmp_path / "a"), "--eval.num_tasks", "5", "--eval.num_steps", "0"]) == 0
    assert "5 held-out tasks" in capsys.readouterr().out


def wrong(argv, capsys, *expected):
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main(argv))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    for text in expected:
        assert text in captured.err
    assert "Traceback" not in captured.err + captured.out


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"env.id": "ssm_metarl/CartPol-v0"}, ["env.id", "ssm_metarl/CartPole-v0"]),
        ({"env.id": "CartPole-v9"}, ["env.id", "CartPole-v1"]),
        ({"env.vary": "{mass: {uniform: [0, 1]}}"}, ["env.vary", "mass", "goal_x"]),
        ({"inner.lrr": 0.1}, ["inner.lrr", "inner.lr"]),
        ({"inner.lr": -1}, ["inner.lr", "greater than 0"]),
        ({"algorithm": "mam"}, ["algorithm", "maml"]),
    ],
)
def test_wrong_settings_end_with_status_2(tmp_path, capsys, settings, expected):
    wrong(["train", *words(tmp_path, **settings)], capsys, *expected)


def test_an_environment_that_cannot_be_made_names_the_file(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("env: {id: ssm_metarl/Pendulm-v0}\nworkers: {num_workers: 0}\n")
    wrong(["train", "--config", str(path)], capsys, "mine.yaml", "env.id", "ssm_metarl/Pendulum-v0")


def test_wrong_commands_and_folders_end_with_status_2(tmp_path, capsys):
    wrong([], capsys)
    wrong(["trian"], capsys, "train")
    wrong(["evaluate", str(tmp_path)], capsys, "config.yaml")
    wrong(["train", "--config", str(tmp_path / "no.yaml")], capsys, "no.yaml")
    main(["train", *words(tmp_path, **{"run.name": "a"})])
    wrong(["train", *words(tmp_path, **{"run.name": "a", "inner.lr": 0.7})], capsys, "inner.lr is 0.7", "run.name")
    wrong(["train", "--resume", "never", *words(tmp_path, **{"run.name": "a"})], capsys, "--resume never")


def test_a_failure_in_the_midst_ends_with_status_1_and_names_the_task(tmp_path, capsys, monkeypatch):
    from ssm_metarl.runtime.worker import TaskWorker

    def broken(self, shared, spec):
        raise OSError("simulator gone")

    monkeypatch.setattr(TaskWorker, "adapt_and_collect", broken)
    assert main(["train", *words(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "train iteration=0 task=0" in error and "simulator gone" in error and "Traceback" not in error


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
