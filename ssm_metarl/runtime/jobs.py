"""`Job`: a training run made ready for a cluster: checked here, packed, and worded as the command that trains there.

What is sent is a folder (less what `EXCLUDES` and its ``.gitignore`` leave out), a command, and what the dashboard
shows of it. The command is the one that trains anywhere, ``python -m ssm_metarl train --resume auto``: sent again, it
goes on where the run was.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from ssm_metarl.config import ConfigError, TrainConfig, load_config
from ssm_metarl.env_runner.tasks import TaskError, make_family
from ssm_metarl.runtime import auth
from ssm_metarl.runtime.process import ENVIRONMENT

EXCLUDES = (
    *(".git", ".venv", "venv", "runs", "build", "dist", "node_modules"),
    *("__pycache__", "*.egg-info", ".*_cache", ".hypothesis"),
    *(".env", ".ray", "auth_token"),  # Secrets: what is sent can be read by all who may use the cluster.
)
"""What of the folder stays here, in the words of ``.gitignore``."""
LIMIT_BYTES = 100 * 2**20
"""The most that a cluster's dashboard takes; the package is not compressed."""


@dataclass(frozen=True)
class Job:
    """One submission of a run.

    Args:
        config: as it will be there.
        working_dir: the folder that is sent.
        command: what runs in it, for a POSIX shell.
    """

    config: TrainConfig
    working_dir: Path
    command: str

    @classmethod
    def prepare(cls, file: Path | None, overrides: Mapping[str, Any], working_dir: Path) -> Job:
        """Checks all that can be known to be wrong before anything is sent.

        Args:
            file: the configuration, inside ``working_dir``; None: the defaults.
            overrides: dotted settings over it.
            working_dir: the folder to send.

        Raises:
            ConfigError: a setting or the folder is wrong, or results would be lost with the job.
        """
        config = load_config(file, overrides)
        try:
            make_family(config.env)
        except TaskError as error:
            source = "command line" if file is None or any(key.startswith("env.") for key in overrides) else file
            raise ConfigError(f"{source}: {error}") from error
        _require_lasting_folders(config)
        if not working_dir.is_dir():
            raise ConfigError(f"--working-dir {working_dir}: no such folder")
        folder = working_dir.resolve()
        words = ["python", "-m", "ssm_metarl", "train", *_config_words(file, folder), "--resume=auto"]
        words += [f"--{key}={_as_typed(value)}" for key, value in overrides.items()]
        job = cls(config, folder, f"exec {shlex.join(words)}")  # exec: a shell in between would not pass SIGTERM on.
        job._require_size()
        return job

    @cached_property
    def submission_id(self) -> str:
        """Unlike any other, and telling: a run may be sent many times."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", self.config.run.name)
        return f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"

    @property
    def runtime_env(self) -> dict[str, Any]:
        """Ray's description of what the job's processes need. Whoever may use the cluster can read it."""
        return {"working_dir": str(self.working_dir), "excludes": list(self._excludes), "env_vars": dict(ENVIRONMENT)}

    @property
    def metadata(self) -> dict[str, str]:
        """What the dashboard shows, and what finds the job again."""
        run = self.config.run
        try:
            version = metadata.version("ssm-metarl")
        except metadata.PackageNotFoundError:
            version = "not installed"
        return {
            "run_name": str(run.name),
            "run_dir": run.dir,
            "iterations": str(self.config.iterations),
            "ssm_metarl": version,
        }

    @cached_property
    def files(self) -> dict[Path, int] | None:
        """The files that are sent, relative, and their bytes; None if this Ray does not tell.

        Raises:
            ConfigError: the folder cannot be read.
        """
        return _files(self.working_dir, self._excludes)

    @property
    def _excludes(self) -> tuple[str, ...]:
        token = auth.token_file().absolute()
        if not token.is_relative_to(self.working_dir):
            return EXCLUDES
        return (*EXCLUDES, f"/{token.relative_to(self.working_dir).as_posix()}")

    def _require_size(self) -> None:
        if self.files is None or sum(self.files.values()) <= LIMIT_BYTES:
            return
        sizes: Counter[str] = Counter()
        for path, size in self.files.items():
            sizes[path.parts[0]] += size
        biggest = ", ".join(f"{name} {_size(size)}" for name, size in sizes.most_common(3))
        raise ConfigError(
            f"--working-dir {self.working_dir}: {_size(sizes.total())} would be sent, and a cluster takes at most "
            f"{_size(LIMIT_BYTES)}: {biggest}; name what is not needed in a .gitignore or .rayignore there, or "
            "give a smaller folder"
        )

    def __str__(self) -> str:
        size = "" if self.files is None else f"{_size(sum(self.files.values()))} of "
        return f"run {self.config.run.name} in {self.config.run.dir}, with {size}{self.working_dir}"


def _require_lasting_folders(config: TrainConfig) -> None:
    """What a job leaves in its working folder is gone with it, on whichever machine that was."""
    problems = []
    if config.run.name is None:
        problems.append("run.name: a job needs a name of its own, by which it is followed, stopped and taken up again")
    for key, where in (("run.dir", config.run.dir), ("checkpoint.dir", config.checkpoint.dir)):
        is_uri = where is not None and "://" in where
        if where is None or (is_uri and not urlsplit(where).password):
            continue
        if is_uri:
            problems.append(
                f"{key}: holds a password, and what is sent with a job can be read by all who may use the cluster; "
                "give the cluster's machines the right to write there"
            )
        elif not Path(where).is_absolute():
            problems.append(
                f"{key} = {where} must be an absolute path on the cluster or a URI, such as /runs or s3://bucket/runs: "
                "a job's working folder does not outlive it"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _config_words(file: Path | None, folder: Path) -> list[str]:
    if file is None:
        return []
    place = file.resolve()
    if not place.is_relative_to(folder):
        raise ConfigError(
            f"{file}: lies outside of the folder that is sent, {folder}: move it there, or give another --working-dir"
        )
    inside = place.relative_to(folder)
    files = _files(folder, EXCLUDES)
    if files is not None and inside not in files:
        raise ConfigError(
            f"{file}: is left out of what is sent ({', '.join(EXCLUDES[:4])}, ... and what .gitignore and .rayignore "
            "name): copy it to another place"
        )
    return [f"--config={inside.as_posix()}"]


def _as_typed(value: Any) -> str:
    """The word that the command line reads as this value."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _files(folder: Path, excludes: tuple[str, ...]) -> dict[Path, int] | None:
    """Walks a folder as Ray does when it packs it, ignore files and all."""
    try:
        # Not public; without it the size is not known beforehand, and the cluster refuses what is too large.
        from ray._private.runtime_env import packaging

        found: list[Path] = []
        honours_git = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
        outside = [packaging._get_excludes(folder, list(excludes))]
        packaging._dir_travel(folder, outside, found.append, honours_git, logging.getLogger(f"{__name__}.silent"))
    except (ImportError, AttributeError, TypeError):
        return None
    except OSError as error:
        raise ConfigError(f"--working-dir {folder}: cannot be read: {error}") from error
    return {path.relative_to(folder): path.stat().st_size for path in found if path.is_file()}


def _size(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
