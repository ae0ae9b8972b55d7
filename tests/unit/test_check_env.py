"""``ssm-metarl check-env``: a zoo of environments with one fault each, all of which it finds, and healthy ones."""

import re
import time
from types import SimpleNamespace
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from ssm_metarl import check_env as module
from ssm_metarl.check_env import examine
from ssm_metarl.cli import main
from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner import probe
from ssm_metarl.env_runner.family import TaskFamily
from ssm_metarl.types import Task

HERE = __name__


class Walk(gymnasium.Env):
    """A healthy one: a position that actions, a speed and noise move; it ends at the edge."""

    observation_space: gymnasium.Space = Box(-3, 3, (2,), np.float32)
    action_space: gymnasium.Space = Box(-1, 1, (2,), np.float32)
    speed = 0.1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.age = self.np_random.uniform(-0.5, 0.5, 2), 0
        return self.observe(), {}

    def observe(self):
        return self.position.astype(np.float32)

    def step(self, action):
        self.age += 1
        self.position = self.position + self.speed * action + self.np_random.normal(0, 0.01, 2)
        over = bool(np.abs(self.position).max() > 2)
        return self.observe(), float(-np.abs(self.position).sum()), over, False, {}


def replaced(index, value):
    """A step with another value at this place of what it returns; a function makes it from the environment."""

    def step(self, action):
        returned = list(Walk.step(self, action))
        returned[index] = value(self) if callable(value) else value
        return tuple(returned)

    return step


def observing(observe):
    return {"observe": observe}


def no_pair(self, **_):
    return Walk.reset(self)[0]


def old_reset(self):
    return Walk.reset(self)


def unable(self, **_):
    raise FileNotFoundError("maze.xml\nis gone")


def old_step(self, action):
    observation, reward, over, _, info = Walk.step(self, action)
    return observation, reward, over, info


def explodes(self, action):
    if self.age == 7:
        raise ZeroDivisionError("at age 7")
    return Walk.step(self, action)


def unseeded_reset(self, *, seed=None, options=None):
    Walk.reset(self)
    self.position = np.random.default_rng().uniform(-0.5, 0.5, 2)
    return self.observe(), {}


def unseeded_step(self, action):
    self.position = self.position + np.random.default_rng().normal(0, 0.01, 2)
    return Walk.step(self, action)


def forgetful_reset(self, *, seed=None, options=None):
    before = getattr(self, "position", np.zeros(2))
    Walk.reset(self, seed=seed)
    self.position = self.position + 0.1 * before
    return self.observe(), {}


shared = SimpleNamespace(position=np.zeros(2))


def shared_reset(self, *, seed=None, options=None):
    observation, info = Walk.reset(self, seed=seed)
    shared.position = self.position
    return observation, info


def shared_step(self, action):
    self.position = shared.position
    returned = Walk.step(self, action)
    shared.position = self.position
    return returned


def late_reset(self, *, seed=None, options=None):
    self.used, self.waiting = getattr(self, "waiting", 0.1), self.speed
    return Walk.reset(self, seed=seed)


def late_step(self, action):
    self.position = self.position + self.used * action
    return Walk.step(self, action)


def leaky_step(self, action):
    self.fastest = max(getattr(self, "fastest", 0.0), self.speed)
    self.position = self.position + self.fastest * action
    return Walk.step(self, action)


VARY = {"speed": {"uniform": [0.05, 0.3]}}

# What replaces the healthy part, the check that must find it, its level and words of the finding and of the cure.
ZOO = {
    "reset-without-seed": ({"reset": old_reset}, "reset", "error", "unexpected keyword.*cure: def reset"),
    "reset-that-fails": ({"reset": unable}, "reset", "error", r"reset\(seed=0\) raised FileNotFoundError: maze.xml is"),
    "reset-without-info": ({"reset": no_pair}, "reset", "error", r"no pair \(observation, info\).*return observation,"),
    "old-step": ({"step": old_step}, "step", "error", r"returned 4 values.*terminated: the task is over"),
    "step-that-fails": ({"step": explodes}, "step", "error", "step 8 raised ZeroDivisionError: at age 7"),
    "int-flag": ({"step": replaced(2, 0)}, "step", "warning", r"terminated is 0, a int.*return bool\(terminated\)"),
    "no-flag": ({"step": replaced(3, None)}, "step", "error", "truncated is None, a NoneType, not a bool"),
    "list": (observing(lambda self: self.position.tolist()), "observations", "warning", "type list.*np.asarray"),
    "double": (
        observing(lambda self: self.position),
        "observations",
        "warning",
        "type float64, its space says float32",
    ),
    "words": (observing(lambda self: ["a", "b"]), "observations", "error", r"\['a', 'b'\], of type list, not numbers"),
    "shape": (
        observing(lambda self: np.zeros(3, np.float32)),
        "observations",
        "error",
        r"shape \(3,\), its space says \(2,\)",
    ),
    "scalar": (observing(lambda self: np.float32(1)), "observations", "error", r"shape \(\), its space says \(2,\)"),
    "ragged": (observing(lambda self: [[1.0], [1.0, 2.0]]), "observations", "error", "ragged"),
    "outside": (
        {"observation_space": Box(-0.01, 0.01, (2,), np.float32)},
        "observations",
        "warning",
        "outside the bounds.*between -0.01 and 0.01.*wider",
    ),
    "nan": (
        observing(lambda self: np.float32([0, np.nan if self.age == 5 else 0])),
        "observations",
        "error",
        r"of step 5 is not finite: nan at \[1\]",
    ),
    "infinite": (observing(lambda self: np.float32([np.inf, 0])), "observations", "error", r"not finite: inf at \[0\]"),
    "infinite-reward": (
        {"step": replaced(1, lambda self: np.inf if self.age == 4 else 0.0)},
        "rewards",
        "error",
        "the reward of step 4 is inf, not finite.*division by 0",
    ),
    "no-reward": ({"step": replaced(1, None)}, "rewards", "error", "step 1 is None, a NoneType, not a number"),
    "array-reward": (
        {"step": replaced(1, np.zeros(1))},
        "rewards",
        "error",
        r"array of shape \(1,\), not a number.*return float\(reward\)",
    ),
    "short": ({"step": replaced(2, True)}, "ends", "warning", r"all 1000 episodes ended at their first step"),
    "unseeded-start": ({"reset": unseeded_reset}, "seed", "error", "ignores its seed.*from step 0.*self.np_random"),
    "unseeded-noise": ({"step": unseeded_step}, "seed", "error", "ignores its seed.*from step 1 on"),
    "forgetful": ({"reset": forgetful_reset}, "seed", "error", "reset leaves something of the episode before"),
    "shared": (
        {"reset": shared_reset, "step": shared_step},
        "instances",
        "error",
        "two instances share state.*__init__",
    ),
    "late-task": ({"reset": late_reset, "step": late_step}, "tasks in play", "error", "a task takes effect late"),
    "leaky-task": ({"step": leaky_step}, "tasks in play", "error", "a task leaks.*whatever the task before"),
    "idle-task": ({"other": 1.0}, "tasks in play", "warning", "do not change what happens in 20 random steps"),
    "images": (
        {
            "observation_space": Box(0, 255, (96, 96, 3), np.uint8),
            "observe": lambda self: np.zeros((96, 96, 3), np.uint8),
        },
        "construction",
        "error",
        "GrayscaleObservation",
    ),
    "many-actions": (
        {"action_space": Dict(a=Discrete(2)), "step": lambda self, action: Walk.step(self, action["a"])},
        "construction",
        "error",
        "action space Dict.*TransformAction",
    ),
}


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    monkeypatch.setattr(module, "SPEED_SECONDS", 0.0)
    monkeypatch.setattr(probe, "BLOCK_SECONDS", 0.001)


def register(monkeypatch, entry_point, limit=20) -> str:
    spec = gymnasium.envs.registration.EnvSpec("test/Zoo-v0", entry_point, max_episode_steps=limit)
    monkeypatch.setitem(gymnasium.registry, "test/Zoo-v0", spec)
    return "test/Zoo-v0"


def findings(capsys, config: EnvConfig) -> tuple[int, str, str]:
    """Exit status, the table, and the list of what is wrong, on one line each."""
    status = examine(config)
    out = capsys.readouterr()
    assert out.err == "" and "Traceback" not in out.out
    assert max(map(len, out.out.splitlines())) <= 100
    table, _, wrong = out.out.partition("\n\n")
    return status, table, re.sub(r"\n    +", " ", wrong)


@pytest.mark.parametrize("name", ZOO)
def test_each_fault_is_found_and_named(name, monkeypatch, capsys):
    parts, check, level, words = ZOO[name]
    env_id = register(monkeypatch, type("Broken", (Walk,), parts))
    varies = {"other": {"uniform": [1, 2]}} if name == "idle-task" else VARY
    status, table, wrong = findings(capsys, EnvConfig(id=env_id, vary=varies))
    assert re.search(rf"^  {check}: .*{words}", wrong, re.M), wrong
    assert status == (level == "error") and len(wrong.splitlines()) == 2, wrong
    assert re.search(rf"^{check} +{'error' if level == 'error' else 'warn'} ", table, re.M)
    assert len(re.findall(r"^\w", table, re.M)) == len(module.CHECKS)


@pytest.mark.parametrize(
    "config",
    [
        EnvConfig(id="CartPole-v1"),
        EnvConfig(id="Pendulum-v1", vary={"g": {"uniform": [5, 15]}}),
        EnvConfig(id="ssm_metarl/Navigation2D-v0"),
        EnvConfig(id="ssm_metarl/CartPole-v0", horizon=30),
        EnvConfig(id=f"{HERE}:Walks"),
        EnvConfig(id="test/Zoo-v0", vary=VARY),
    ],
    ids=lambda config: config.id,
)
def test_healthy_ones_pass_without_findings(config, monkeypatch, capsys):
    register(monkeypatch, Walk)
    status, table, wrong = findings(capsys, config)
    assert (status, wrong) == (0, f"all is well with {config.id}\n")
    assert {line[15:22].strip() for line in table.splitlines() if line[0] != " "} == {"ok"}
    words = r"raw step: [\d.]+ [mu]s, row alone: .* x raw\), row of 10: .* x raw\); [\d,]+ steps/s, 1 M steps in "
    assert re.search(words, " ".join(table.split()))


# Ends


@pytest.mark.parametrize(
    "over, words", [(False, "never ends: .* no end within 2000"), (None, "has no horizon: .* took")]
)
def test_without_a_horizon_the_cure_is_named_and_the_rest_is_tried(over, words, monkeypatch, capsys):
    monkeypatch.setattr(module, "ENDLESS_STEPS", 2000)
    parts = {} if over is None else {"step": replaced(2, over), "observe": lambda self: self.position.clip(-3, 3) * 0}
    env_id = register(monkeypatch, type("Endless", (Walk,), {**parts, "speed": 0.5, "observation_space": ANY}), None)
    status, table, wrong = findings(capsys, EnvConfig(id=env_id))
    assert status == 1 and re.search(rf"^  ends: {words}.*cure: .*--env.horizon 200", wrong, re.M), wrong
    assert " - " not in table
    assert findings(capsys, EnvConfig(id=env_id, horizon=20))[0] == 0


ANY = Box(-np.inf, np.inf, (2,), np.float64)


def test_an_earlier_time_limit_is_a_warning(monkeypatch, capsys):
    status, _, wrong = findings(capsys, EnvConfig(id=register(monkeypatch, Walk), horizon=50, vary=VARY))
    assert status == 0 and "its own time limit of 20 steps comes before the horizon of 50" in wrong


def test_a_slow_one_is_cut_by_the_clock_and_passes(monkeypatch, capsys):
    def slow(self, action):
        time.sleep(0.01)
        return Walk.step(self, action)

    for name, seconds in (("PLAY_SECONDS", 0.05), ("SECONDS", 0.03)):
        monkeypatch.setattr(module, name, seconds)
    env_id = register(monkeypatch, type("Slow", (Walk,), {"step": slow}), 10**6)
    began = time.monotonic()
    status, table, wrong = findings(capsys, EnvConfig(id=env_id, vary=VARY))
    assert (status, wrong) == (0, f"all is well with {env_id}\n") and time.monotonic() - began < 10
    assert re.search(r"no end within \d+ steps; cut after 1000000", table)


# What cannot be made


def test_what_cannot_be_made_is_one_error_and_the_rest_is_not_tried(monkeypatch, capsys):
    def missing():
        import package_that_is_not_there  # noqa: F401

    cases = {
        "CartPol-v1": "did you mean 'CartPole-v1'.*name that package too",
        "package_that_is_not_there:Env-v0": "cannot be imported.*cure: install it, or start in the folder",
        register(monkeypatch, missing): "No module named 'package_that_is_not_there' cure: pip install package_that",
    }
    for env_id, words in cases.items():
        status, table, wrong = findings(capsys, EnvConfig(id=env_id))
        assert status == 1 and re.search(rf"^  construction: .*{words}", wrong, re.M), wrong
        assert table.count("not tried, as it cannot be made") == len(module.CHECKS) - 1


def test_a_constructor_that_fails_is_shown_without_a_traceback(monkeypatch, capsys):
    def broken():
        raise RuntimeError("no display\nat all")

    status, _, wrong = findings(capsys, EnvConfig(id=register(monkeypatch, broken)))
    assert status == 1 and "construction: RuntimeError: no display at all" in wrong


# Families of one's own


class Walks(TaskFamily):
    """A healthy one."""

    horizon = 20

    def sample_task(self, rng) -> Task:
        return {"speed": rng.uniform(0.05, 0.3)}

    def make_env(self):
        return Walk()

    def apply_task(self, env, task) -> None:
        env.speed = task["speed"]


class NotNumbers(Walks):
    def sample(self, rng, n):
        return [{"speed": object()}] * n


class Unrepeatable(Walks):
    def sample_task(self, rng):
        return {"speed": np.random.default_rng().uniform(0.05, 0.3)}


class Counting(Walks):
    made = 0

    def __init__(self):
        Counting.made += 1
        self.speed = 0.01 * Counting.made

    def sample_task(self, rng):
        return {"speed": self.speed + rng.uniform()}


class Constant(Walks):
    def sample_task(self, rng):
        return {"speed": 0.1}


class TwoSpeeds(Walk):
    """Its task belongs to the class."""

    common: ClassVar[dict] = {"speed": 0.1}

    def step(self, action):
        self.speed = self.common["speed"]
        return super().step(action)


class SharedTask(Walks):
    def make_env(self):
        return TwoSpeeds()

    def apply_task(self, env, task):
        env.common["speed"] = task["speed"]


class FailingTask(Walks):
    def apply_task(self, env, task):
        raise KeyError("sped")


@pytest.mark.parametrize(
    "name, check, words",
    [
        ("NotNumbers", "tasks", "sample returned speed = <object.*must be a finite number or a flat list of them"),
        ("Unrepeatable", "tasks", "other tasks the second time.*from the rng that is given"),
        ("Counting", "tasks", "made a second time, as in a worker, the family has other test tasks"),
        ("Constant", "tasks", "all are the same"),
        ("SharedTask", "tasks in play", "environments share the task"),
        ("FailingTask", "reset", "KeyError: 'sped'"),
        ("Walk", "construction", "Walk is not made from ssm_metarl.TaskFamily"),
    ],
)
def test_faults_of_families_are_found(name, check, words, capsys):
    status, _, wrong = findings(capsys, EnvConfig(id=f"{HERE}:{name}"))
    assert status == (name != "Constant") and re.search(rf"^  {check}: .*{words}", wrong, re.M), wrong


# The command


def test_the_command_takes_the_settings_of_the_environment(tmp_path, capsys):
    argv = [
        "check-env",
        "Pendulum-v1",
        "--env.vary.g",
        "{uniform: [5, 15]}",
        "--env.kwargs.g",
        "9.0",
        "--env.horizon",
        "30",
    ]
    assert main(argv) == 0
    assert "such as g " in capsys.readouterr().out
    file = tmp_path / "mine.yaml"
    file.write_text("env: {id: ssm_metarl/CartPole-v0, horizon: 20}\n")
    assert main(["check-env", "--config", str(file)]) == 0
    assert "horizon 20" in capsys.readouterr().out
    assert main(["check-env", "CartPol-v1"]) == 1


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "name the environment"),
        (["CartPole-v1", "--inner.lr", "0.1"], "the environment alone, and takes no --inner.lr"),
        (["CartPole-v1", "--env.horizon", "0"], "env.horizon = 0 must be"),
    ],
)
def test_a_wrong_command_is_one_message_and_status_2(argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main(["check-env", *argv]))
    assert stop.value.code == 2 and words in capsys.readouterr().err
