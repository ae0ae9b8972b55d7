"""What the files in a run's folder say, finished or not: for the report.

Nothing outside the folder is read, and what is missing or damaged becomes a note, except the configuration.
"""

from __future__ import annotations

import functools
import json
import operator
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ssm_metarl.config import ConfigError, TrainConfig, load_config, settings
from ssm_metarl.evaluation.curves import join
from ssm_metarl.runtime.checkpoint import MANIFEST
from ssm_metarl.runtime.metrics import Record

LARGEST = 1e100
"""No return and no time that is measured is larger; pictures can reckon with it."""


@dataclass(frozen=True)
class Run:
    """A run as its files tell it. Example: ``read_run(Path("runs/first"))``."""

    folder: Path
    config: TrainConfig
    records: list[Record]
    """Lines of ``metrics.jsonl`` that can be read, in order."""
    events: list[Record]
    """Lines of ``events.jsonl``, in order."""
    evaluation: dict[str, Any] | None
    """``eval.json``; None: there is none that can be used, and a note says so."""
    manifest: dict[str, Any] | None
    """That of the newest checkpoint in the folder, as it stands: nothing is verified here."""
    notes: list[str]
    """What is missing or damaged, in sentences."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def read_run(folder: Path) -> Run:
    """Reads a run's folder. Raises ConfigError: it is not one, or its configuration is not this version's."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it has no config.yaml")
    config = load_config(folder / "config.yaml")
    notes: list[str] = []
    records = [record for record in _json_lines(folder / "metrics.jsonl") if isinstance(record.get("iteration"), int)]
    if len(records) < config.iterations:
        notes.append(f"{len(records)} of {config.iterations} iterations are done.")
    evaluation = _evaluation(folder, notes)
    hashes = [record["params_sha256"] for record in records if "params_sha256" in record]
    if evaluation and hashes and evaluation["params_sha256"] != hashes[-1]:
        notes.append("The evaluation is of other parameters than those of the last iteration.")
    events = _json_lines(folder / "events.jsonl")
    return Run(folder, config, records, events, evaluation, _newest_manifest(folder / "checkpoints"), notes)


def flat(config: TrainConfig) -> dict[str, Any]:
    """Dotted key -> value, for every setting, as plain JSON data."""
    tree = config.model_dump(mode="json")
    return {key: functools.reduce(operator.getitem, key.split("."), tree) for key in settings()}


def changed(config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value, default) of the settings that are not as the preset ``algorithm`` leaves them."""
    defaults = flat(TrainConfig(algorithm=config.algorithm)) | {"algorithm": TrainConfig().algorithm}
    return {key: (value, defaults[key]) for key, value in flat(config).items() if value != defaults[key]}


def repeat_command(config: TrainConfig) -> str:
    """The command that trains the same run again, under a fresh name: every setting that is not the default."""
    lines = ["ssm-metarl train"]
    for key, (value, _) in changed(config).items():
        if not key.startswith("run."):
            word = as_word(value)
            lines.append(shlex.join([f"--{key}={word}"] if word.startswith("--") else [f"--{key}", word]))
    return " \\\n  ".join(lines)


def as_word(value: Any) -> str:
    """A setting's value as one word of the command line."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _json_lines(path: Path) -> list[Record]:
    """The objects in a file of JSON lines; none if there is no such file. A line cut short by a kill is left out."""
    records = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _evaluation(folder: Path, notes: list[str]) -> dict[str, Any] | None:
    cure = f"to make one: ssm-metarl evaluate {shlex.quote(str(folder))}"
    try:
        evaluation = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        _check(evaluation)
    except FileNotFoundError:
        notes.append(f"There is no evaluation on held-out tasks yet; {cure}")
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        notes.append(f"eval.json cannot be used ({type(error).__name__}: {error}); {cure}")
    else:
        return evaluation
    return None


def _check(evaluation: Any) -> None:
    """Raises ValueError, TypeError, AttributeError or LookupError unless it has what the report shows."""
    if "meta" not in evaluation["strategies"]:
        raise LookupError("there is no strategy meta")
    if not isinstance(evaluation["params_sha256"], str) or not isinstance(evaluation["episodes_per_task"], int):
        raise TypeError("params_sha256 must be text, and episodes_per_task a whole number")
    curves = join({"eval.json": evaluation})
    numbers = [*curves.returns.values(), *(curves.successes or {}).values()]
    shape_RKS = curves.returns["meta"].shape
    if any(array.shape != shape_RKS for array in numbers) or shape_RKS[1] != len(curves.tasks) or 0 in shape_RKS:
        raise ValueError("there must be as many returns of every strategy as tasks and steps")
    if not all((np.abs(array) <= LARGEST).all() for array in numbers):
        raise ValueError("a return is not a finite number")
    if not all(isinstance(part, Mapping) for part in (*curves.tasks, evaluation["versions"])):
        raise TypeError("the versions and every task must be mappings")


def _newest_manifest(checkpoints: Path) -> dict[str, Any] | None:
    for path in sorted(checkpoints.glob(f"it-*/{MANIFEST}"), reverse=True):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(manifest, dict) and all(isinstance(manifest.get(key), dict) for key in ("files", "versions")):
            return manifest
    return None
