"""The commands of ``ssm-metarl``, each a dataclass of its arguments and a function."""

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
    """Measure trained runs: return after k = 0, 1, 2, ... adaptation steps on held-out test tasks, per strategy."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder or its URI, or its name in run.dir. Settings such as --eval.num_tasks may be given anew."""
    more: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Further runs, such as other seeds: then also the table of all, with intervals over runs and tasks."""


@dataclass(frozen=True)
class Report:
    """Show a run, or several side by side, as one page with pictures: report.html, for any browser, also offline."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder or its URI, or its name in run.dir. It need not be finished."""
    more: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Further runs. Those that differ only by their seed are joined, with intervals over seeds and tasks."""
    out: Path | None = None
    """The file; without one, report.html in the run's folder, or in this folder if there are several runs."""
    pictures: Path | None = None
    """A folder in which to put the charts as SVG files as well."""


@dataclass(frozen=True)
class Export:
    """Write the policy of a run as NAME.safetensors and NAME.yaml, which act and adapt without the run and Ray."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder or its URI, or its name in run.dir. Settings of the adapter, such as --adapter.strategy, become
    the exported policy's."""
    out: Path | None = None
    """A file that ends in .safetensors; without one, policy.safetensors in the run's folder."""


@dataclass(frozen=True)
class Adapt:
    """Let a trained policy live in a held-out task: it plays, learns from what it played, and plays on."""

    run: Annotated[str, tyro.conf.Positional]
    """A run's folder or its URI, its name in run.dir, an exported .safetensors file, or pretrained:NAME.
    --adapter.strategy says how it learns, --env.id and --env.vary put it into another environment of the same sizes."""
    episodes: int | None = None
    """Episodes to live; it learns after every env.episodes_per_task of them. Without one: eval.num_steps times, and
    plays once more."""
    task: int | None = None
    """Index of the held-out test task; without one, drawn by --seed."""
    video: Path | None = None
    """A clip of one episode before and after, side by side: a file that ends in .gif or .webp. Of Navigation2D also the
    paths as a drawing: .svg."""
    out: Path | None = None
    """Where to write the policy as it is in the end: a file that ends in .safetensors."""


@dataclass(frozen=True)
class Submit:
    """Train on a cluster: send the run there as a job, follow it, stop it; sent again, it goes on where it was."""

    address: str | None = None
    """The cluster's dashboard, such as http://127.0.0.1:8265; without one, RAY_API_SERVER_ADDRESS, else that."""
    config: Path | None = None
    """YAML file, in the folder that is sent."""
    working_dir: Path = Path(".")
    """The folder that is sent, less what its .gitignore names."""
    follow: bool = False
    """Show the job's log until it ends, and end with its exit status. Ctrl-C leaves it running."""
    attach: str | None = None
    """Send nothing; follow the job of this run.name or id."""
    stop: str | None = None
    """Send nothing; stop the job of this run.name or id. What it has saved stays."""


@dataclass(frozen=True)
class Tune:
    """Search for better settings: trials side by side on Ray Tune, the best one compared with the defaults."""

    file: Annotated[Path, tyro.conf.Positional]
    """The sweep, a YAML file such as tune_configs/quick.yaml. Settings given here go over its base."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the sweep of this name in run.dir, should it exist."""


@dataclass(frozen=True)
class Doctor:
    """Check this machine: versions, cores, memory, disk, Ray, and a tiny training whose results must agree."""


@dataclass(frozen=True)
class CheckEnv:
    """Check an environment or a family of tasks: what is wrong with it, how to mend it, and how fast it is."""

    env: Annotated[str | None, tyro.conf.Positional] = None
    """What env.id may be: a family of ssm_metarl, a gymnasium id, or module:Class; without one, that of --config.
    --env.horizon, --env.vary.NAME, --env.variant and --env.kwargs.NAME are as in training."""
    config: Path | None = None
    """YAML file of a training, whose section env is checked."""


def train(arguments: Train, overrides: dict[str, Any]) -> int:
    """Trains, writes ``eval.json`` and ``report.html``, prints the adaptation table and the ``done:`` line."""
    config = load_config(arguments.config, overrides)
    from ssm_metarl.env_runner.tasks import TaskError
    from ssm_metarl.evaluation.evaluate import adaptation_table, write_evaluation
    from ssm_metarl.evaluation.report import write_report
    from ssm_metarl.runtime.driver import MetaTrainer
    from ssm_metarl.runtime.metrics import ConsoleSink
    from ssm_metarl.runtime.signals import StopSignals
    from ssm_metarl.runtime.storage import join

    try:
        trainer = MetaTrainer(config, [ConsoleSink(config.iterations)], arguments.resume)
    except TaskError as error:
        raise ConfigError(f"{_source_of_env(arguments.config, overrides)}: {error}") from error
    summary = trainer.run(StopSignals(config.run.grace_s))
    write_evaluation(summary.folder, config, summary.evaluation, trainer.params_P)
    print(f"\n{adaptation_table(config, summary.evaluation)}\n", flush=True)
    where = summary.run.where
    try:
        summary.run.publish("eval.json", write_report([summary.folder]).name)
        print(f"report: {join(where, 'report.html')}")
    except OSError as error:
        # The run is saved and evaluated: a full disk must not make it a failure.
        print(f"no report: {error}; to write it: ssm-metarl report {where}", file=sys.stderr)
    print(summary, flush=True)
    return 0


def evaluate(arguments: Evaluate, overrides: dict[str, Any]) -> int:
    """Evaluates the newest valid checkpoint of each run and prints its table, then that of all runs."""
    from ssm_metarl.evaluation.curves import join, table
    from ssm_metarl.evaluation.evaluate import evaluate_runs

    runs, records = _opened(arguments, overrides), {}
    for run, (_, record) in zip(runs, evaluate_runs([run.path for run in runs], overrides), strict=True):
        run.publish("eval.json")
        records[run.where] = record
        title, end = (f"{run.where}: ", "\n\n") if arguments.more else ("", "\n")
        print(title + table(join({run.where: record})), end=end, flush=True)
    if arguments.more:
        print(table(join(records)), flush=True)
    return 0


def report(arguments: Report, overrides: dict[str, Any]) -> int:
    """Writes the page, and the charts if asked for, and says where."""
    if others := [f"--{key}" for key in overrides if key != "run.dir"]:
        raise ConfigError(f"command line: report shows what was measured, and takes no {', '.join(others)}")
    from ssm_metarl.evaluation.report import write_pictures, write_report
    from ssm_metarl.runtime.process import limit_threads
    from ssm_metarl.runtime.storage import join

    limit_threads()
    runs = _opened(arguments, overrides)
    folders = [run.path for run in runs]
    path = write_report(folders, arguments.out)
    if path.parent == runs[0].path:
        runs[0].publish(path.name)
        path = join(runs[0].where, path.name)
    print(f"report: {path}", flush=True)
    if arguments.pictures:
        print("\n".join(str(path) for path in write_pictures(folders, arguments.pictures)), flush=True)
    return 0


def tune(arguments: Tune, overrides: dict[str, Any]) -> int:
    """Runs a sweep: its table, the comparison with the base, and its files."""
    from ssm_metarl.tuning.sweep import run_sweep

    return run_sweep(arguments.file, overrides, arguments.resume)


def doctor(_: Doctor, overrides: dict[str, Any]) -> int:
    """Examines the machine."""
    from ssm_metarl.doctor import examine

    return examine(load_config(None, overrides))


def check_env(arguments: CheckEnv, overrides: dict[str, Any]) -> int:
    """Examines an environment."""
    if others := [f"--{key}" for key in overrides if key.partition(".")[0] != "env"]:
        raise ConfigError(f"command line: check-env looks at the environment alone, and takes no {', '.join(others)}")
    if arguments.env:
        overrides = {**overrides, "env.id": arguments.env}
    elif not arguments.config and "env.id" not in overrides:
        raise ConfigError("command line: name the environment, such as ssm-metarl check-env CartPole-v1")
    config = load_config(arguments.config, overrides).env
    from ssm_metarl.check_env import examine
    from ssm_metarl.runtime.process import limit_threads

    limit_threads()
    return examine(config)


def export(arguments: Export, overrides: dict[str, Any]) -> int:
    """Writes the policy of a run as two files, and says where."""
    run = _trained(arguments.run, overrides)
    from ssm_metarl.deployment import export
    from ssm_metarl.env_runner.tasks import TaskError

    with exit_when_wrong(TaskError):
        path = export(run, arguments.out, overrides)
    print(f"{path} ({path.stat().st_size / 1024:.0f} kB) and {path.stem}.yaml beside it: load_policy({str(path)!r})")
    return 0


def adapt(arguments: Adapt, overrides: dict[str, Any]) -> int:
    """Shows a life in one task: each episode's return, what was learned after which, and what it came to."""
    run = _trained(arguments.run, overrides)
    from ssm_metarl.deployment import load_policy
    from ssm_metarl.env_runner.tasks import TaskError
    from ssm_metarl.evaluation.live import Home, live
    from ssm_metarl.runtime.policy_file import require_suffix
    from ssm_metarl.runtime.process import limit_threads

    if arguments.out:
        require_suffix(arguments.out)
    limit_threads()
    with exit_when_wrong(TaskError):
        policy = load_policy(run, overrides)
        home = Home.choose(policy, arguments.task)
    config = policy.config
    print(f"{arguments.run}: {config.policy.core} core, strategy {config.adapter.strategy}\n{home}", flush=True)
    finish_video = _start_video(arguments.video, policy, home) if arguments.video else None
    lived = live(policy, home, arguments.episodes, lambda line: print(line, flush=True))
    print(lived, flush=True)
    if finish_video:
        finish_video(lived)
        print(f"before and after: {arguments.video}", flush=True)
    if arguments.out:
        print(f"the policy as it is now: {policy.save(arguments.out)}", flush=True)
    return 0


def submit(arguments: Submit, overrides: dict[str, Any]) -> int:
    """Sends a job, follows or stops one. Returns 0, or the exit status of the job that it followed."""
    from ssm_metarl.runtime.job_client import Cluster
    from ssm_metarl.runtime.jobs import Job

    if name := arguments.attach or arguments.stop:
        if overrides or arguments.config or (arguments.attach and arguments.stop):
            raise ConfigError("command line: --attach and --stop take a job's name or id, and nothing but an --address")
        cluster = Cluster(arguments.address)
        job_id = cluster.find(name)
        if arguments.attach:
            return cluster.follow(job_id)
        print(cluster.stop(job_id), flush=True)
        return 0
    job = Job.prepare(arguments.config, overrides, arguments.working_dir)
    cluster = Cluster(arguments.address)
    if cluster.is_open:
        print(f"note: {cluster.address} asks nobody for a token (RAY_AUTH_MODE=token)", file=sys.stderr)
    job_id = cluster.submit(job)
    print(f"sent as job {job_id} to {cluster.address}: {job}", flush=True)
    if arguments.follow:
        return cluster.follow(job_id)
    print(cluster.hints(job_id), flush=True)
    return 0


COMMANDS = {
    "train": (Train, train),
    "evaluate": (Evaluate, evaluate),
    "report": (Report, report),
    "adapt": (Adapt, adapt),
    "export": (Export, export),
    "tune": (Tune, tune),
    "submit": (Submit, submit),
    "doctor": (Doctor, doctor),
    "check-env": (CheckEnv, check_env),
}


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


def _opened(arguments: Evaluate | Report, overrides: dict[str, Any]) -> list[Any]:
    """The `RunFolder` of each run."""
    from ssm_metarl.runtime.run_folder import open_folder

    return [open_folder(_trained(run, overrides)) for run in (arguments.run, *arguments.more)]


def _trained(run: str, overrides: dict[str, Any]) -> str:
    """Where the policy is: the argument, or the run of that name in ``run.dir``. A wrong setting is a ConfigError."""
    root = load_config(None, overrides).run.dir
    if "://" in root and not any(sign in run for sign in "/:"):
        return f"{root.rstrip('/')}/{run}"
    return str(Path(root, run)) if Path(root, run).is_dir() and not Path(run).exists() else run


def _start_video(path: Path, policy: Any, home: Any) -> Any:
    try:
        from ssm_metarl.evaluation.clips import start_video
    except ModuleNotFoundError as error:
        raise ConfigError(f'--video needs a package: {error}; pip install "ssm-metarl[video]"') from error
    return start_video(path, policy, home)


def _source_of_env(config: Path | None, overrides: dict[str, Any]) -> str:
    """Where the settings of the environment were given, for an error about them."""
    on_command_line = any(key.startswith("env.") for key in overrides)
    return str(config) if config and not on_command_line else "command line"


def _overview() -> str:
    lines = [f"  {name:10} {command.__doc__}" for name, (command, _) in COMMANDS.items()]
    return "\n".join(
        ["usage: ssm-metarl COMMAND [arguments]", "", *lines, "", "ssm-metarl COMMAND --help shows every setting."]
    )
