"""The commands: ``ssm-metarl train | evaluate | doctor``. Each is a dataclass of arguments and a function."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ssm_metarl.config import ConfigError, load_config
from ssm_metarl.options import exit_when_wrong, parse

EXIT_FAILED, EXIT_WRONG = 1, 2


@dataclass(frozen=True)
class Train:
    """Meta-train a policy: one line per iteration, then its adaptation curve on held-out tasks."""

    config: Path | None = None
    """YAML file; without one, Navigation2D with a state space policy."""
    resume: str = "auto"
    """auto: go on from the newest valid checkpoint of a run of this name; never: refuse an existing name; or the path
    or URI of a checkpoint."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained run: return after k = 0, 1, 2, ... adaptation steps on its held-out test tasks."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder. Settings such as --eval.num_tasks may be given anew."""


@dataclass(frozen=True)
class Doctor:
    """Check this machine: versions, cores, memory, disk, Ray, and a tiny training whose results must agree."""


def train(arguments: Train, overrides: dict[str, Any]) -> int:
    """Trains, writes ``eval.json`` and ``learning_curve.png``, prints the adaptation table and the ``done:`` line."""
    config = load_config(arguments.config, overrides)
    from ssm_metarl.env_runner.tasks import TaskError
    from ssm_metarl.evaluation.evaluate import adaptation_table, write_evaluation
    from ssm_metarl.evaluation.report import draw_learning_curve
    from ssm_metarl.runtime.driver import MetaTrainer
    from ssm_metarl.runtime.metrics import ConsoleSink
    from ssm_metarl.runtime.signals import StopSignals

    try:
        trainer = MetaTrainer(config, [ConsoleSink(config.iterations)], arguments.resume)
    except TaskError as error:
        raise ConfigError(f"{_source_of_env(arguments.config, overrides)}: {error}") from error
    summary = trainer.run(StopSignals(config.run.grace_s))
    write_evaluation(summary.folder, config, summary.evaluation, trainer.params_P)
    title = f"{config.env.id}: {config.algorithm}, {config.policy.core} core"
    picture = draw_learning_curve(summary.folder, title, summary.evaluation, config.inner.num_steps)
    print(f"\n{adaptation_table(config, summary.evaluation)}\n\nlearning curve: {picture}\n{summary}", flush=True)
    return 0


def evaluate(arguments: Evaluate, overrides: dict[str, Any]) -> int:
    """Evaluates the newest valid checkpoint and prints the adaptation table."""
    from ssm_metarl.env_runner.tasks import TaskError
    from ssm_metarl.evaluation.evaluate import adaptation_table, evaluate_run

    with exit_when_wrong(TaskError):
        config, evaluation = evaluate_run(arguments.run, overrides)
    print(adaptation_table(config, evaluation), flush=True)
    return 0


def doctor(_: Doctor, overrides: dict[str, Any]) -> int:
    """Examines the machine."""
    from ssm_metarl.doctor import examine

    return examine(load_config(None, overrides))


COMMANDS = {"train": (Train, train), "evaluate": (Evaluate, evaluate), "doctor": (Doctor, doctor)}


def main(argv: Sequence[str]) -> int:
    """Runs one command.

    Returns the exit status: 0 done, 1 failed on the way, 2 wrong from the start, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else EXIT_WRONG
    if argv[0] not in COMMANDS:
        print(f"error: no command {argv[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_WRONG
    command, work = COMMANDS[argv[0]]
    try:
        with exit_when_wrong():
            arguments, overrides = parse(command, argv[1:], f"ssm-metarl {argv[0]}")
            return work(arguments, overrides)
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as ended:
        # Ray's handler of SIGTERM, in place while Ray starts, exits with the signal's bare number.
        if ended.code != signal.SIGTERM:
            raise
        print("stopped by SIGTERM", file=sys.stderr)
        return 128 + signal.SIGTERM
    except (ValueError, RuntimeError, OSError) as error:
        # Our errors and the system's say what is wrong; any other is a mistake of ours, and wants its traceback.
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] != "ssm_metarl":
            raise
        status = getattr(error, "exit_status", EXIT_FAILED)
        print(f"{'error: ' if status == EXIT_FAILED else ''}{error}", file=sys.stderr)
        return status


def _source_of_env(config: Path | None, overrides: dict[str, Any]) -> str:
    """Where the settings of the environment were given, for an error about them."""
    on_command_line = any(key.startswith("env.") for key in overrides)
    return str(config) if config and not on_command_line else "command line"


def _overview() -> str:
    lines = [f"  {name:10} {command.__doc__}" for name, (command, _) in COMMANDS.items()]
    return "\n".join(
        ["usage: ssm-metarl COMMAND [arguments]", "", *lines, "", "ssm-metarl COMMAND --help shows every setting."]
    )
