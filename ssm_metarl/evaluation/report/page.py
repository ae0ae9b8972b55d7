"""``report.html``: one file that shows what a run, or several, came to. No scripts, no network, light and dark."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ssm_metarl.config import ConfigError
from ssm_metarl.deployment import load_policy
from ssm_metarl.env_runner.tasks import TaskError
from ssm_metarl.evaluation.report import sections
from ssm_metarl.evaluation.report.charts import Figure
from ssm_metarl.evaluation.report.groups import Group, make_groups
from ssm_metarl.evaluation.report.pictures import Picture
from ssm_metarl.evaluation.report.run_files import Run, read_run
from ssm_metarl.evaluation.report.wording import environment, listing
from ssm_metarl.evaluation.trajectories import NAVIGATION, trajectory_picture
from ssm_metarl.runtime.checkpoint import CheckpointError

NAME = "report.html"


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the report of one run or of several, finished or not, and returns its path.

    Args:
        folders: the runs' folders. Runs that differ only by their seed are joined.
        out: the file; None: ``report.html`` in the folder of the only run, or here if there are several.

    Raises:
        ConfigError: a folder is not a run's, or named twice. OSError: the file cannot be written.
    """
    runs = _read(folders)
    page, _ = render(runs, _paths(runs[0]) if len(runs) == 1 else [])
    path = out or (folders[0] / NAME if len(folders) == 1 else Path(NAME))
    replace_text(path, page)
    return path


def write_pictures(folders: Sequence[Path], to: Path) -> list[Path]:
    """Writes each chart of the report as an SVG file of its own into a folder, and returns their paths.

    Raises:
        ConfigError: a folder is not a run's, or named twice. OSError: a file cannot be written.
    """
    _, pictures = render(_read(folders))
    to.mkdir(parents=True, exist_ok=True)
    paths = [to / f"{picture.name}.svg" for picture in pictures]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_text(picture.standalone(), encoding="utf-8")
    return paths


def render(runs: Sequence[Run], extra: Sequence[tuple[str, str]] = ()) -> tuple[str, list[Picture]]:
    """The page as text, and its charts.

    Args:
        runs: what to show. extra: (title, SVG) of further pictures, shown with the first part's; the variables of
            ``pictures.css`` are theirs to use.

    Raises:
        ValueError: an extra picture is not SVG, or more than a drawing.
    """
    by_environment: dict[str, list[Run]] = {}
    for run in runs:
        by_environment.setdefault(run.config.env.id, []).append(run)
    groups = {env: make_groups(members) for env, members in by_environment.items()}
    parts = [sections.results(members, index, len(groups) > 1) for index, members in enumerate(groups.values())]
    # Before the last one, which is about the machine.
    parts[0]["figures"][-1:-1] = [Figure(title, "", _drawing(svg)) for title, svg in extra]
    everyone = [group for members in groups.values() for group in members]
    page = template(Path(__file__).with_name("report.html.jinja")).render(
        title=f"{listing(environment(env) for env in groups)}: {_what(runs)}",
        subtitle=_subtitle(runs),
        notes=_notes(everyone, runs),
        parts=parts,
        faults=sections.faults(runs),
        configurations=[sections.configuration(group, len(everyone) > 1) for group in everyone],
        runs=[sections.repetition(run) for run in runs],
    )
    return page, [figure.picture for part in parts for figure in part["figures"] if isinstance(figure.picture, Picture)]


def replace_text(path: Path, text: str) -> None:
    """Writes a file, or leaves the one that was there. Raises OSError."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


@functools.cache
def template(path: Path) -> Any:
    """A page's template, which may use the styles and macros of this folder. Everything is escaped."""
    loader = FileSystemLoader([path.parent, Path(__file__).parent])
    # Autoescape for every name: by default jinja looks at the ending, and .jinja is not among those it knows.
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return jinja.get_template(path.name)


def _read(folders: Sequence[Path]) -> list[Run]:
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"a run is named twice: {', '.join(map(str, folders))}")
    return [read_run(folder) for folder in folders]


def _paths(run: Run) -> list[tuple[str, str]]:
    """Of Navigation2D: what its newest checkpoint walks on held-out tasks. Nothing where there is none to be used."""
    if run.config.env.id != NAVIGATION:
        return []
    try:
        picture = trajectory_picture(load_policy(run.folder, {"adapter.strategy": "meta"}))
    except (CheckpointError, ConfigError, TaskError):
        return []
    return [picture] if picture else []


def _what(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return f"{runs[0].config.algorithm}, {runs[0].config.policy.core} core"
    return f"{len(runs)} runs side by side"


def _subtitle(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return listing(run.name for run in runs)
    [run] = runs
    return f"{run.name} \u00b7 {run.config.env.id} \u00b7 seed {run.config.seed}"


def _notes(groups: Sequence[Group], runs: Sequence[Run]) -> list[str]:
    who = (lambda run: f"{run.name}: ") if len(runs) > 1 else (lambda _: "")
    return [who(run) + note for run in runs for note in run.notes] + [note for group in groups for note in group.notes]


def _drawing(svg: str) -> Markup:
    """A picture made elsewhere, once it is sure that it is a drawing and nothing else. Raises ValueError."""
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"an extra picture is not well-formed SVG: {error}") from error
    for element in root.iter():
        name = str(element.tag).rpartition("}")[2]
        attributes = {key.rpartition("}")[2].lower(): value for key, value in element.attrib.items()}
        active = [key for key in attributes if key.startswith("on")]
        if name in ("script", "foreignObject") or active or not attributes.get("href", "#").startswith("#"):
            raise ValueError(f"an extra picture holds more than a drawing: <{name}> {' '.join(active)}")
    if str(root.tag).rpartition("}")[2] != "svg":
        raise ValueError("an extra picture is not SVG")
    return Markup(svg.partition("?>")[2] if svg.lstrip().startswith("<?xml") else svg)
