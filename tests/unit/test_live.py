"""A life in one task: the episodes of evaluation, told as they come; and the command ``adapt`` around it."""

import json

import numpy as np
import pytest
from test_deployment import CARTPOLE, NAVIGATION, deployed

from ssm_metarl.cli import main
from ssm_metarl.config import ConfigError
from ssm_metarl.deployment import load_policy
from ssm_metarl.evaluation.live import Bars, Home, live
from ssm_metarl.runtime.worker import TaskWorker
from ssm_metarl.types import SharedState, Stream, TaskSpec


@pytest.mark.parametrize("strategy", ["none", "online", "meta"])
@pytest.mark.parametrize("env_id", [NAVIGATION, CARTPOLE])
def test_a_life_is_the_evaluation_of_that_task(env_id, strategy):
    """The same episodes: their means are the returns of ``eval.json``."""
    policy = deployed(env_id, **{"adapter.strategy": strategy, "env.episodes_per_task": 3, "seed": 4})
    home, params_P, lines = Home.choose(policy, 2), policy.policy.to_vector(), []
    lived = live(policy, home, 9, lines.append)
    spec = TaskSpec(4, Stream.EVALUATE, 0, 2, home.task, 2, strategy)
    expected = TaskWorker(policy.config).evaluate(SharedState(params_P), spec).returns
    assert tuple(rollout.mean_return for rollout in lived.rollouts) == expected
    assert lived.num_steps == (0 if strategy == "none" else 2)
    assert [line.split()[0] for line in lines[1:]] == [
        "1",
        "2",
        "3",
        "-------",
        "4",
        "5",
        "6",
        "-------",
        "7",
        "8",
        "9",
    ]
    assert ("nothing is learned" in lines[4]) == (strategy == "none")
    assert np.array_equal(policy.policy.to_vector(), params_P) == (strategy == "none")


def test_the_last_rollout_has_the_episodes_that_are_left():
    policy = deployed(**{"env.episodes_per_task": 4})
    lived = live(policy, Home.choose(policy, 0), 6, lambda _: None)
    assert [rollout.mask_TB.shape[1] for rollout in lived.rollouts] == [4, 2]
    assert "before adaptation" in str(lived) and "after 1 step (the first 4 and the last 2 episodes)" in str(lived)
    short = live(policy, Home.choose(policy, 0), 3, lambda _: None)
    assert "without adaptation" in str(short)
    with pytest.raises(ConfigError, match="--episodes 0"):
        live(policy, Home.choose(policy, 0), 0)


def test_the_task_is_drawn_by_the_seed_or_chosen():
    drawn = {Home.choose(deployed(**{"seed": seed})).index for seed in range(8)}
    assert len(drawn) > 4 and drawn <= set(range(40))
    home = Home.choose(deployed(), 7)
    assert home.task == home.family.tasks("test", 8)[7] and "test task 7: force_sign=" in str(home)
    few = deployed(**{"env.vary": {"length": {"choice": [0.5]}, "force_sign": {"choice": [-1, 1]}}})
    assert "training saw it" in str(Home.choose(few, 1))
    with pytest.raises(ConfigError, match="counted from 0"):
        Home.choose(deployed(), -1)


@pytest.mark.parametrize(
    ("first", "scale", "values", "bars"),
    [
        (
            [-40.0, -38.0],
            "each ░ is -1: less is better",
            [-40, -12.4, 0, -90],
            ["░" * 40, "░" * 12, "", "░" * 40 + "›"],
        ),
        ([26.0, 12.0], "each █ is 5", [26, 100, -10, 500], ["█" * 5, "█" * 20, "░░", "█" * 40 + "›"]),
        ([0.0], "each █ is 0.1", [0.0, 1.0], ["", "█" * 10]),
        ([3e-7, 1e-7], "each █ is 5e-08", [3e-7], ["█" * 6]),
    ],
)
def test_bars(first, scale, values, bars):
    drawn = Bars(np.array(first))
    assert str(drawn) == scale and [drawn.draw(value) for value in values] == bars


def adapt(capsys, *words):
    status = main(["adapt", *map(str, words)])
    return status, capsys.readouterr().out


def refused(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(list(map(str, words))))
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.startswith("error: ") and "Traceback" not in err
    return err


@pytest.fixture
def saved(tmp_path):
    return deployed(NAVIGATION, **{"env.episodes_per_task": 3}).save(tmp_path / "a.safetensors")


def test_adapt_shows_a_life_and_keeps_what_came_of_it(saved, tmp_path, capsys):
    out, drawing = tmp_path / "adapted.safetensors", tmp_path / "paths.svg"
    status, text = adapt(capsys, saved, "--episodes", 6, "--task", 1, "--out", out, "--video", drawing)
    assert status == 0 and "test task 1: goal_x=" in text and text.count("░") > 6 and "adapts: 1 gradient step" in text
    assert "mean return" in text and str(out) in text
    adapted, before = load_policy(out), load_policy(saved)
    policy = load_policy(saved)
    live(policy, Home.choose(policy, 1), 6, lambda _: None)
    np.testing.assert_array_equal(adapted.policy.to_vector(), policy.policy.to_vector())
    assert (adapted.policy.to_vector() != before.policy.to_vector()).any()
    assert drawing.read_text().startswith("<svg")


def test_adapt_takes_settings_for_the_environment_and_the_adapter(saved, capsys):
    again = [adapt(capsys, saved, "--episodes", 6, "--seed", 5) for _ in range(2)]
    assert again[0] == again[1] and again[0] != adapt(capsys, saved, "--episodes", 6, "--seed", 6)
    status, text = adapt(capsys, saved, "--adapter.strategy", "none", "--env.vary.goal_x", "{uniform: [0.3, 0.3]}")
    assert status == 0 and "strategy none" in text and "goal_x=0.3 " in text and "nothing is learned" in text


def test_what_adapt_and_export_refuse(saved, tmp_path, capsys):
    assert "pretrained:NAME" in refused(capsys, "adapt", tmp_path / "absent")
    assert "Acrobot-v1 has observations of 6" in refused(capsys, "adapt", saved, "--env.id", "Acrobot-v1")
    assert "CartPole-v1" in refused(capsys, "adapt", saved, "--env.id", "CartPole-v9")
    assert "command line: adapter.strtegy" in refused(capsys, "adapt", saved, "--adapter.strtegy", "none")
    assert "policy.core" in refused(capsys, "adapt", saved, "--policy.core", "mlp")
    assert ".safetensors" in refused(capsys, "adapt", saved, "--out", tmp_path / "a.pt")
    assert ".gif" in refused(capsys, "adapt", saved, "--video", tmp_path / "a.mp4")
    assert "config.yaml" in refused(capsys, "export", tmp_path)
    damaged = tmp_path / "b.safetensors"
    damaged.write_bytes(b"nothing")
    assert main(["adapt", str(damaged)]) == 1
    assert "b.safetensors cannot be used" in capsys.readouterr().err


def test_a_trained_run_is_adapted_exported_and_agrees_with_its_evaluation(tmp_path, capsys):
    tiny = "--iterations 1 --tasks_per_iteration 2 --env.horizon 5 --env.episodes_per_task 2 --workers.num_workers 0"
    assert main(["train", *f"{tiny} --run.name a --run.dir {tmp_path} --eval.num_tasks 3".split()]) == 0
    run = tmp_path / "a"
    assert main(["export", str(run)]) == 0
    assert str(run / "policy.safetensors") in capsys.readouterr().out
    returns = json.loads((run / "eval.json").read_text())["strategies"]["meta"]["returns"][2]
    for source in (run, run / "policy.safetensors", "a"):
        _, text = adapt(capsys, source, "--task", 2, "--episodes", 4, "--run.dir", tmp_path)
        assert f"mean return {returns[0]:.2f} before adaptation, {returns[1]:.2f} after 1 step" in text
