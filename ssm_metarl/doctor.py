"""``ssm-metarl doctor``: whether this machine can train, in plain words, one line per check as they come.

A check is a function from a `Patient` (which carries what earlier checks have found) to a `Check`. One that raises, or
takes longer than `LIMIT_S`, becomes a failed line, and the others still run. Nothing stays behind but what Ray logs.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ssm_metarl.runtime import machine
from ssm_metarl.runtime.process import ENVIRONMENT, limit_threads

# All other packages are imported by the check that needs them: a broken one is a line, not a traceback.
if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from ssm_metarl.config import TrainConfig
    from ssm_metarl.runtime.driver import Summary

PACKAGE = "ssm-metarl"
SHOWN = ("torch", "numpy", "gymnasium", "ray")
LIMIT_S, GRACE_S = 50.0, 5.0  # Together below the 60 s after which Ray ends a process whose cluster does not answer.
WORKER_LIMIT_S = 40.0  # Below LIMIT_S: the pool says better what it waited for.
LOW_DISK_BYTES = 10**9
SHM = Path("/dev/shm")
NOT_KNOWN = "not known here"


@dataclass(frozen=True)
class Check:
    """What a check says. ``fail``: something that prevents training; ``warn``: something that could be better."""

    status: Literal["ok", "warn", "fail"]
    text: str
    cure: str = ""


@dataclass
class Patient:
    """What is examined, and what a check has found for later ones."""

    config: TrainConfig
    folder: Path
    params_sha256: str | None = None
    owns_ray: bool = False
    worker_bytes: int | None = None


def examine(config: TrainConfig) -> int:
    """Prints what every check says. Returns 0, or 1 if something prevents training. Call it in the main thread.

    Args:
        config: of the training that is tried, but for its length; its ``run.dir`` is where runs are to go.
    """
    wrong: dict[str, Check] = {}
    with tempfile.TemporaryDirectory(prefix="ssm-metarl-doctor-", ignore_cleanup_errors=True) as folder:
        patient = Patient(config, Path(folder))
        for name, function in CHECKS.items():
            print(f"{name:<20}", end="", flush=True)
            check = run_check(function, patient)
            print(f"{check.status:<6}{check.text}", flush=True)
            if check.status != "ok":
                wrong[name] = check
    failed = any(check.status == "fail" for check in wrong.values())
    if failed:
        print("\nthis machine cannot train as it is:")
    else:
        print("\nthis machine can train, but:" if wrong else "\nall is well: this machine can train")
    for name, check in wrong.items():
        print(f"  {name}: {check.text}" + (f"\n    cure: {check.cure}" if check.cure else ""))
    return int(failed)


def run_check(function: Callable[[Patient], Check], patient: Patient) -> Check:
    """What one check says; what it raises is its failure."""
    try:
        with _time_limit(LIMIT_S):
            return function(patient)
    except _TooLong as error:
        return Check("fail", str(error))
    except Exception as error:
        return Check("fail", f"{type(error).__name__}: {_first_line(error)}")


def versions(_: Patient) -> Check:
    """Python and all that is required, against the bounds that the package declares."""
    from packaging.specifiers import SpecifierSet

    python, bounds = platform.python_version(), metadata.metadata(PACKAGE)["Requires-Python"]
    required = _requirements()
    faults = _faults(required)
    if not SpecifierSet(bounds).contains(python, prereleases=True):
        faults.append(f"python {python} is not {bounds}")
    if faults:
        missing = any(_version(requirement.name) is None for requirement in required)
        cure = f"pip install --upgrade {PACKAGE}, in an environment of its own with python {bounds}"
        return Check("fail" if missing else "warn", "; ".join(faults), cure)
    shown = ", ".join(f"{name} {_version(name)}" for name in (PACKAGE, *SHOWN))
    return Check("ok", f"python {python}, {shown}; all {len(required)} required packages are within their bounds")


def extras(_: Patient) -> Check:
    """Optional parts, and how to get those that are not here."""
    said = []
    for extra in metadata.metadata(PACKAGE).get_all("Provides-Extra") or ():
        faults = _faults(_requirements(extra))
        said.append(f"{extra}: pip install '{PACKAGE}[{extra}]' ({', '.join(faults)})" if faults else f"{extra}: yes")
    return Check("ok", "; ".join(said) or "there are none")


def gpu(_: Patient) -> Check:
    """Training does not use one."""
    import torch

    count = torch.accelerator.device_count()
    seen = f"torch sees {count} ({torch.accelerator.current_accelerator()})" if count else "torch sees none"
    return Check("ok", f"{seen}; none is needed, training runs on CPU cores")


def cores(_: Patient) -> Check:
    """Cores that this process may use."""
    count, limit = machine.num_cores(), machine.cpu_limit()
    if limit is not None and limit < count:
        cure = f"--workers.num_workers {max(1, int(limit))}; auto starts one worker per core"
        return Check("warn", f"{count}, but the container may use no more than {limit:g} at a time", cure)
    return Check("ok", f"{count} for this process")


def threads(_: Patient) -> Check:
    """One thread for torch and each BLAS: with more, products have other bits."""
    import threadpoolctl
    import torch

    limit_threads()
    counts = {"torch": torch.get_num_threads()}
    counts |= {pool["internal_api"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
    text = ", ".join(f"{library} {count}" for library, count in counts.items())
    if any(count != 1 for count in counts.values()):
        return Check("fail", f"{text}; each should be 1", "set OMP_NUM_THREADS=1 before the program starts")
    differing = [name for name, value in ENVIRONMENT.items() if os.environ.get(name) != value]
    if differing:
        cure = "unset them; the command ssm-metarl sets them itself"
        return Check("warn", f"{text}; not set as for workers: {', '.join(differing)}", cure)
    return Check("ok", f"{text}; environment variables as for workers")


def memory(_: Patient) -> Check:
    """Memory of the machine or the container."""
    sizes = machine.memory()
    return Check("ok", NOT_KNOWN if sizes is None else f"{_size(sizes[1])} of {_size(sizes[0])} available")


def shared_memory(_: Patient) -> Check:
    """Ray puts its object store there only if it fits as a whole: 30 % of the available memory, at most 10 GB."""
    sizes = machine.memory()
    if sizes is None or not SHM.is_dir():
        return Check("ok", NOT_KNOWN)
    usage, wanted = shutil.disk_usage(SHM), min(0.3 * sizes[1], 10**10)
    text = f"{SHM} has {_size(usage.free)} of {_size(usage.total)} free"
    if usage.free >= wanted:
        return Check("ok", text)
    cure = f"docker run --shm-size={int(wanted // 10**9) + 1}g (its default is 64 MB), or remove files from {SHM}"
    return Check("warn", f"{text}, but Ray wants {_size(wanted)}; it will use a disk instead, which is slower", cure)


def runs_folder(patient: Patient) -> Check:
    """Where runs go."""
    cure = "--run.dir FOLDER, one with room that you may write to"
    return _disk(Path(patient.config.run.dir), LOW_DISK_BYTES, cure)


def ray_folder(_: Patient) -> Check:
    """Where Ray has its logs, sockets and spilled objects. It spills no more on a disk that is 95 % full."""
    on_linux = os.environ.get("TMPDIR") if platform.system() == "Linux" else None
    folder = Path(os.environ.get("RAY_TMPDIR") or on_linux or "/tmp") / "ray"
    low = 0.05 * shutil.disk_usage(_existing(folder)).total
    return _disk(folder, low, "make room, or set RAY_TMPDIR to a folder with room that you may write to")


def token(_: Patient) -> Check:
    """Whoever can read Ray's token can use every Ray of its owner."""
    from ssm_metarl.runtime.auth import is_private, token_file

    path = token_file()
    if path.is_file() and not is_private(path):
        return Check("warn", f"others can read {path}", f"chmod 600 {path}")
    return Check("ok", f"{path}, which only you can read" if path.is_file() else f"none yet; Ray makes {path}")


def training(patient: Patient) -> Check:
    """A short training in this process."""
    summary, seconds = _train(patient, num_workers=0)
    patient.params_sha256 = summary.params_sha256
    return Check("ok", f"{_outcome(summary)} in {seconds:.1f} s, without Ray")


def ray_start(patient: Patient) -> Check:
    """Starts or joins Ray, as training will."""
    import ray

    from ssm_metarl.runtime.pool import start_ray

    address = os.environ.get("RAY_ADDRESS")
    began = time.monotonic()
    try:
        patient.owns_ray = start_ray(patient.config.workers.cpus_per_worker)
    except (Exception, _TooLong) as error:
        cure = "look at the logs in Ray's folder"
        if address:
            cure = "unset RAY_ADDRESS, or set it to a cluster that runs; RAY_AUTH_MODE=token if that wants a token"
        where = f"RAY_ADDRESS={address}: " if address else ""
        return Check("fail", f"{where}{_first_line(error)}", f"{cure}; --workers.num_workers 0 trains without Ray")
    seconds, cpus = time.monotonic() - began, ray.cluster_resources().get("CPU", 0)
    if not patient.owns_ray:
        return Check("ok", f"runs in this process already, with {cpus:g} CPUs")
    if address:
        joined = ray.get_runtime_context().gcs_address
        return Check("ok", f"joined the cluster at {joined} (RAY_ADDRESS), {cpus:g} CPUs, in {seconds:.1f} s")
    return Check("ok", f"started in {seconds:.1f} s; a run starts its own, as RAY_ADDRESS is not set")


def training_in_worker(patient: Patient) -> Check:
    """The same training in a Ray worker: it must come to the same parameters."""
    import ray

    if not ray.is_initialized():
        return Check("fail", "not tried, as Ray does not run")
    summary, seconds = _train(patient, num_workers=1)
    text = f"{_outcome(summary)} in {seconds:.1f} s"
    if patient.params_sha256 is None:
        return Check("ok", f"{text}, with nothing to compare it with")
    if summary.params_sha256 != patient.params_sha256:
        cure = "the same versions and the same kind of CPU on every machine"
        return Check("fail", f"{text}: other parameters than without Ray", cure)
    return Check("ok", f"{text}: the same as without Ray")


def room_for_workers(patient: Patient) -> Check:
    """How many workers like that one the memory holds, next to the Ray that runs now."""
    sizes = machine.memory()
    if sizes is None or patient.worker_bytes is None:
        return Check("ok", NOT_KNOWN)
    count = int(sizes[1] // patient.worker_bytes)
    text = f"a worker took {_size(patient.worker_bytes)}; memory is left for about {count} like it"
    if count < machine.num_cores():
        return Check("warn", f"{text}, fewer than cores", f"--workers.num_workers {count}, or more memory")
    return Check("ok", text)


def ray_stop(patient: Patient) -> Check:
    """Stops or leaves Ray."""
    if not patient.owns_ray:
        return Check("ok", "nothing to stop")
    import ray

    began = time.monotonic()
    ray.shutdown()
    return Check("ok", f"{'left' if 'RAY_ADDRESS' in os.environ else 'stopped'} in {time.monotonic() - began:.1f} s")


CHECKS: dict[str, Callable[[Patient], Check]] = {
    "versions": versions,
    "extras": extras,
    "gpu": gpu,
    "cores": cores,
    "threads": threads,
    "memory": memory,
    "shared memory": shared_memory,
    "folder of runs": runs_folder,
    "folder of Ray": ray_folder,
    "token of Ray": token,
    "training": training,
    "start of Ray": ray_start,
    "training in worker": training_in_worker,
    "room for workers": room_for_workers,
    "end of Ray": ray_stop,
}


class _TooLong(BaseException):
    """No Exception, which the code that hangs might catch."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises `_TooLong` in the main thread when time is up; ends the program if that does not help."""
    is_done, main_thread = threading.Event(), threading.get_ident()

    def expire(*_: object) -> None:
        raise _TooLong(f"no answer within {seconds:g} s")

    def watch() -> None:
        if is_done.wait(seconds):
            return
        signal.pthread_kill(main_thread, signal.SIGUSR1)
        # A call into a library that does not return to Python cannot be interrupted.
        if not is_done.wait(GRACE_S):
            print(f"fail  no answer within {seconds:g} s\n\nthis hangs for good; the rest cannot be tried", flush=True)
            os._exit(1)

    # SIGALRM belongs to the driver.
    before = signal.signal(signal.SIGUSR1, expire)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_done.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)


def _train(patient: Patient, num_workers: int) -> tuple[Summary, float]:
    """Two iterations on two tasks each; also the seconds that it took."""
    from ssm_metarl.runtime.driver import MetaTrainer
    from ssm_metarl.runtime.metrics import Sink

    class Scales(Sink):
        def task(self, *_: int) -> None:
            patient.worker_bytes = machine.peak_memory("ray::TaskWorker")

    began = time.monotonic()
    short = {"iterations": 2, "tasks_per_iteration": 2, "eval.num_tasks": 2, "eval.num_steps": 1, "eval.every": 0}
    here = {"run.dir": str(patient.folder), "run.name": f"{num_workers}-workers", "checkpoint.dir": None}
    workers = {"num_workers": num_workers, "start_timeout_s": WORKER_LIMIT_S, "task_deadline_s": WORKER_LIMIT_S}
    settings = short | here | {f"workers.{name}": value for name, value in workers.items()}
    config = patient.config.override(settings)
    return MetaTrainer(config, [Scales()] if num_workers else []).run(), time.monotonic() - began


def _outcome(summary: Summary) -> str:
    returns = f"return {summary.pre:.4g} before adaptation, {summary.post:.4g} after"
    return f"{returns}, params_sha256 {summary.params_sha256[:12]}"


def _requirements(extra: str = "") -> list[Requirement]:
    """What the package requires, or what an extra adds to that."""
    from packaging.requirements import Requirement

    def applies(requirement: Requirement, to: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": to})

    declared = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    return [each for each in declared if applies(each, extra) and not (extra and applies(each, ""))]


def _faults(requirements: list[Requirement]) -> list[str]:
    faults = []
    for requirement in requirements:
        version, bounds = _version(requirement.name), requirement.specifier
        if version is None:
            faults.append(f"{requirement.name} is missing")
        elif not bounds.contains(version, prereleases=True):
            faults.append(f"{requirement.name} {version} is not {bounds}")
    return faults


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _disk(folder: Path, low: float, cure: str) -> Check:
    existing = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"doctor")
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check("fail", f"{folder.absolute()} cannot be written: {error.strerror or error}", cure)
    text = f"{folder.absolute()} can be written, {_size(free)} free"
    return Check("warn", f"{text}, which is little", cure) if free < low else Check("ok", text)


def _existing(folder: Path) -> Path:
    """The folder, or what there is of the path to it."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
