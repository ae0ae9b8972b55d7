"""The command line: the same rules and words as a file, status 2 for every wrong input, help that shows what counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tyro
import yaml
from test_config import WRONG_KEYS, WRONG_VALUES

from ssm_metarl.config import ConfigError, TrainConfig, load_config, settings
from ssm_metarl.options import exit_when_wrong, parse


@dataclasses.dataclass(frozen=True)
class Train:
    """Meta-trains a policy."""

    config: Path | None = None
    """YAML file of settings."""
    resume: str = "auto"
    """auto, never or a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluates a run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""


def train(*argv: str) -> TrainConfig:
    command, overrides = parse(Train, argv, "ssm-metarl train")
    return load_config(command.config, overrides)


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended, exit_when_wrong():
        train(*argv)
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and "Traceback" not in err
    return err


@pytest.mark.parametrize(("key", "value", "words"), WRONG_VALUES)
@pytest.mark.parametrize("form", ["word", "equals"])
def test_wrong_value_ends_with_status_2(capsys, form, key, value, words):
    # Quotes and escapes are YAML's: a text setting is given the text itself.
    value = yaml.safe_load(value) if value[:1] in "'\"" else value
    err = complaint(capsys, *([f"--{key}", value] if form == "word" else [f"--{key}={value}"]))
    assert err.startswith(f"error: command line: {key}") and err.count("\n") == 1
    assert all(word in err for word in words), err


@pytest.mark.parametrize(("key", "words"), WRONG_KEYS)
@pytest.mark.parametrize("value", [["1"], []])
def test_wrong_key_ends_with_status_2(capsys, key, words, value):
    err = complaint(capsys, f"--{key}", *value)
    assert err.startswith("error: command line: ") and "is not a setting" in err
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--run.name"], "--run.name needs a value"),
        (["--inner.lr", "--seed", "1"], "--inner.lr needs a value: a finite number greater than 0"),
        (["--policy.inputs"], "--policy.inputs needs a value"),
        (["--inner", "3"], "inner is a section, not a setting: set inner.lr"),
        (["--resum", "never"], "--resum is not an option; did you mean --resume?"),
        (["--confg", "a.yaml"], "did you mean --config?"),
        (["--config"], "Missing value for argument '--config'"),
        (["--config", "no/such.yaml"], "no/such.yaml: no such file"),
        (["--env.vary", "{length: {uniform"], "--env.vary {length: {uniform: not valid YAML: line 1"),
        (["--env.vary", "{a: {scale: [1, 2]}, a: {scale: [1, 2]}}"], "a is given twice"),
        (["--env.vary", "length"], "env.vary = 'length' must be a mapping"),
        (["--env.vary.length", "{uniform: [2, 1]}"], "env.vary.length = {'uniform': [2, 1]} must be"),
        (["--policy.inputs", "observation", "reward"], "policy.inputs[1] = 'reward' must be one of"),
        (["stray"], "stray"),
        (["-x"], "-x"),
        (["--seed", "1", "2"], "2"),
    ],
)
def test_other_mistakes_end_with_status_2(capsys, argv, words):
    assert words in complaint(capsys, *argv)


def test_wrong_file_ends_with_status_2(capsys, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("inner: {lrr: 1}\nseed: yes\n")
    lines = complaint(capsys, "--config", str(path), "--outer.lr", "-1").splitlines()
    assert len(lines) == 3
    assert f"error: {path}: inner.lrr is not a setting; did you mean inner.lr?" in lines
    assert f"error: {path}: seed = true must be a whole number of at least 0" in lines
    assert "error: command line: outer.lr = -1 must be a finite number greater than 0" in lines


def test_other_errors_end_with_status_2_only_when_named(capsys):
    with pytest.raises(SystemExit), exit_when_wrong(KeyError):
        raise KeyError("x")
    assert "error: 'x'" in capsys.readouterr().err
    with pytest.raises(KeyError), exit_when_wrong():
        raise KeyError("x")


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--env.horizon", "50"], "env.horizon", 50),
        (["--env.horizon=50"], "env.horizon", 50),
        (["--env.horizon", "None"], "env.horizon", None),
        (["--env.horizon", "null"], "env.horizon", None),
        (["--inner.lr", "1e-3"], "inner.lr", 0.001),
        (["--inner.lr", "1"], "inner.lr", 1.0),
        (["--policy.initial_log_std", "-1.5"], "policy.initial_log_std", -1.5),
        (["--inner.first_order"], "inner.first_order", True),
        (["--inner.first-order", "--seed", "3"], "inner.first_order", True),
        (["--inner.first_order", "True"], "inner.first_order", True),
        (["--inner.first_order", "true"], "inner.first_order", True),
        (["--inner.first-order", "False"], "inner.first_order", False),
        (["--inner.first-order=false"], "inner.first_order", False),
        (["--inner.num-steps", "3"], "inner.num_steps", 3),
        (["--tasks-per-iteration", "3"], "tasks_per_iteration", 3),
        (["--workers.num_workers", "auto"], "workers.num_workers", "auto"),
        (["--workers.num_workers", "0"], "workers.num_workers", 0),
        (["--workers.num-workers", "2"], "workers.num_workers", 2),
        (["--adapter.strategy", "none"], "adapter.strategy", "none"),
        (["--run.name", "5"], "run.name", "5"),
        (["--run.name", "2024-01-01"], "run.name", "2024-01-01"),
        (["--run.name", "null"], "run.name", None),
        (["--run.dir", "a: b, [c"], "run.dir", "a: b, [c"),
        (["--run.dir=--x=y"], "run.dir", "--x=y"),
        (["--policy.inputs", "observation"], "policy.inputs", ("observation",)),
        (["--policy.inputs", "observation", "previous_action", "--seed", "1"], "policy.inputs",
         ("observation", "previous_action")),
        (["--policy.inputs", "[observation, episode_start]"], "policy.inputs", ("observation", "episode_start")),
        (["--env.vary", "{length: {uniform: [0.3, 1]}}"], "env.vary", {"length": {"uniform": (0.3, 1.0)}}),
        (["--env.vary.model.opt-x", "{scale: [0.5, 2]}"], "env.vary", {"model.opt-x": {"scale": (0.5, 2.0)}}),
        (["--seed", "1", "--seed", "2"], "seed", 2),
    ],
)  # fmt: skip
def test_every_form_of_a_value(argv, key, value):
    config = train(*argv)
    section, _, field = key.rpartition(".")
    found = getattr(getattr(config, section) if section else config, field)
    assert found == value and type(found) is type(value)


def test_presets_and_files(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("algorithm: promp\nouter: {num_passes: 7}\n")
    for argv in (["--algorithm", "fomaml", "--config", str(path)], [f"--config={path}", "--algorithm=fomaml"]):
        config = train(*argv)
        assert (config.outer.rule, config.outer.num_passes, config.inner.first_order) == ("gradient", 7, True)
    assert train("--outer.rule", "clipped", "--algorithm", "maml").outer.rule == "clipped"
    assert train("--algorithm", "maml", "--outer.rule", "clipped").outer.rule == "clipped"
    assert train() == TrainConfig()


def test_a_command_keeps_its_own_arguments():
    for argv in (["r", "--env.horizon", "50"], ["--env.horizon", "50", "r"]):
        assert parse(Evaluate, argv, "evaluate") == (Evaluate(Path("r")), {"env.horizon": 50})
    assert parse(Train, ["--resume", "never"], "train") == (Train(resume="never"), {})


def test_a_missing_argument_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Evaluate, ["--env.horizon", "50"], "ssm-metarl evaluate")
    assert ended.value.code == 2 and "Folder of the run" in capsys.readouterr().err


def help_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: str) -> str:
    """What is printed, as one line without the boxes."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        parse(Train, argv, "ssm-metarl train")
    assert ended.value.code in (0, None)
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--inner.lr", "-1", "--help"], ["--nonsense", "--help"]])
def test_help_comes_whatever_else_is_wrong(capsys, monkeypatch, argv):
    out = help_of(capsys, monkeypatch, *argv)
    assert "usage: ssm-metarl train" in out and "Meta-trains a policy." in out
    assert "--config {None}|PATH YAML file of settings." in out
    assert "--inner.lr FLOAT Step size of an inner gradient step. (default: 0.1)" in out
    assert "--inner.first_order {True,False}" in out and "--env.vary YAML" in out


def test_help_names_every_setting(capsys, monkeypatch):
    out = help_of(capsys, monkeypatch, "--help")
    assert [key for key in settings() if f"--{key} " not in out] == []


def test_help_shows_the_defaults_of_this_command_line(capsys, monkeypatch, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("env: {vary: {length: {uniform: [1, 2]}}}\nseed: 77\n")
    for config in (["--config", str(path)], [f"--config={path}"]):
        out = help_of(capsys, monkeypatch, *config, "--algorithm", "maml", "--help")
        assert "(default: 77)" in out and "(default: gradient)" in out and "{length: {uniform: [1.0, 2.0]}}" in out


def test_missing_values_are_config_errors():
    with pytest.raises(ConfigError, match="needs a value"):
        parse(Train, ["--seed"], "train")
