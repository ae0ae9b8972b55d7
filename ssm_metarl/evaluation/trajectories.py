"""Navigation2D from above: the paths that a policy walks on held-out tasks before and after it adapted.

Shape legend: T time, B rows (episodes); a path is [T, 2], positions x, y.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssm_metarl.deployment import DeployedPolicy
from ssm_metarl.evaluation.live import Home, Lived, live
from ssm_metarl.types import Rollout, Task

NAVIGATION = "ssm_metarl/Navigation2D-v0"
MOST_PATHS = 2
"""Drawn of each kind on a task: more hide each other."""
WIDTH, COLUMNS, GAP, CAPTION, LEGEND = 460, 3, 12, 20, 26
LEAST_REACH, MOST_REACH = 0.6, 1.2
"""Half the width of the plane that a panel shows; goals lie within 0.5."""
# Variables of the page that the picture stands in; the fallbacks can be read on white and on black.
_COLOUR = {
    name: f"var(--{name},{fallback})"
    for name, fallback in (("ink", "#7d7d7d"), ("muted", "#7d7d7d"), ("before", "#8a8a8a"), ("after", "#d9622b"))
}


@dataclass(frozen=True)
class Walks:
    """What was walked on one task.

    Example: ``Walks({"goal_x": 0.3, "goal_y": -0.2}, [path_T2], [path_T2], "task 3: -39 to -12")``
    """

    task: Task
    before: list[np.ndarray]
    after: list[np.ndarray]
    label: str

    @classmethod
    def of(cls, lived: Lived) -> Walks:
        """The first rollout and the last one of a life."""
        first, last = lived.rollouts[0], lived.rollouts[-1]
        label = f"task {lived.home.index}: {first.mean_return:.0f} to {last.mean_return:.0f}".replace("-", "−")
        return cls(lived.home.task, paths(first), paths(last), label)


def paths(rollout: Rollout) -> list[np.ndarray]:
    """The positions in each episode, [T + 1, 2], up to its end."""
    steps_B = rollout.mask_TB.sum(axis=0).astype(int)
    return [
        np.concatenate([rollout.observation_TBO[:steps, row], rollout.final_observation_BO[None, row]])
        for row, steps in enumerate(steps_B)
    ]


def trajectory_picture(policy: DeployedPolicy, num_tasks: int = 6) -> tuple[str, str] | None:
    """Title and SVG of lives on the first held-out tasks, ``inner.num_steps`` adaptations each.

    The policy is put back to its meta-parameters before each task and in the end. None if it is not for Navigation2D.
    """
    if policy.config.env.id != NAVIGATION:
        return None
    steps, walks = policy.config.inner.num_steps, []
    for index in range(num_tasks):
        policy.adapter.reset()
        episodes = policy.config.env.episodes_per_task * (steps + 1)
        walks.append(Walks.of(live(policy, Home.choose(policy, index), episodes, lambda _: None)))
    policy.adapter.reset()
    return "Paths on held-out tasks", draw_trajectories(walks)


def draw_trajectories(walks: Sequence[Walks]) -> str:
    """An SVG, one panel per task: paths before (grey) and after adaptation (orange), from the cross to the ring.

    Colours are the CSS variables ``--ink``, ``--muted``, ``--before`` and ``--after`` of the page around it; alone it
    is readable on white and on black.
    """
    columns = min(COLUMNS, len(walks))
    side = (WIDTH - GAP * (COLUMNS - 1)) / COLUMNS if columns > 1 else WIDTH - 2 * GAP
    rows = -(-len(walks) // columns)
    height = LEGEND + rows * (side + CAPTION + GAP)
    reach = _reach(walks)
    parts = [_legend()]
    for number, walk in enumerate(walks):
        x = number % columns * (side + GAP)
        y = LEGEND + number // columns * (side + CAPTION + GAP)
        parts.append(_panel(walk, x, y, side, reach))
    words = "; ".join(walk.label for walk in walks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>Paths before and after adaptation: '
        f"{html.escape(words)} (mean returns)</title>{''.join(parts)}</svg>\n"
    )


def _reach(walks: Sequence[Walks]) -> float:
    """Half the side of the square around the start that holds nearly all that was walked."""
    points = np.concatenate([np.abs(path) for walk in walks for path in (*_few(walk.before), *_few(walk.after))])
    return float(np.clip(1.05 * np.quantile(points.max(axis=1), 0.99), LEAST_REACH, MOST_REACH))


def _few(all_paths: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    return all_paths[:MOST_PATHS]


def _panel(walk: Walks, x: float, y: float, side: float, reach: float) -> str:
    def place(point: Sequence[float]) -> tuple[float, float]:
        return (point[0] / reach + 1) / 2 * side, (1 - point[1] / reach) / 2 * side

    def line(path: np.ndarray, name: str) -> str:
        points = " ".join(f"{across:.1f},{down:.1f}" for across, down in map(place, path))
        style = f"fill:none;stroke:{_COLOUR[name]};stroke-width:1.2;stroke-linejoin:round"
        return f'<polyline points="{points}" style="{style}"/>'

    goal_x, goal_y = place((walk.task["goal_x"], walk.task["goal_y"]))
    start_x, start_y = place((0.0, 0.0))
    marks = (
        f'<path d="M{start_x - 4:.1f} {start_y:.1f}h8m-4 -4v8" style="stroke:{_COLOUR["ink"]};stroke-width:1.6"/>'
        f'<circle cx="{goal_x:.1f}" cy="{goal_y:.1f}" r="6" style="fill:none;stroke:{_COLOUR["ink"]};stroke-width:2"/>'
        f'<circle cx="{goal_x:.1f}" cy="{goal_y:.1f}" r="1.8" style="fill:{_COLOUR["ink"]}"/>'
    )
    lines = [
        line(path, name) for name, group in (("before", walk.before), ("after", walk.after)) for path in _few(group)
    ]
    frame = f"fill:none;stroke:{_COLOUR['muted']};stroke-opacity:0.45"
    # A nested svg cuts off what lies outside of it.
    return (
        f'<svg x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}">'
        f'<rect width="{side:.1f}" height="{side:.1f}" style="{frame}"/>{"".join(lines)}{marks}</svg>'
        f'<text x="{x:.1f}" y="{y + side + 14:.1f}" style="fill:{_COLOUR["ink"]}">{html.escape(walk.label)}</text>'
    )


def _legend() -> str:
    parts, x = [], 0
    for name, words, width in (("before", "before adaptation", 152), ("after", "after", 72)):
        parts.append(f'<path d="M{x} 10h18" style="stroke:{_COLOUR[name]};stroke-width:3"/>')
        parts.append(f'<text x="{x + 24}" y="14" style="fill:{_COLOUR["ink"]}">{words}</text>')
        x += width
    parts.append(f'<path d="M{x} 10h8m-4 -4v8" style="stroke:{_COLOUR["ink"]};stroke-width:1.6"/>')
    parts.append(f'<text x="{x + 14}" y="14" style="fill:{_COLOUR["ink"]}">start</text>')
    x += 56
    parts.append(f'<circle cx="{x}" cy="10" r="6" style="fill:none;stroke:{_COLOUR["ink"]};stroke-width:2"/>')
    parts.append(f'<circle cx="{x}" cy="10" r="1.8" style="fill:{_COLOUR["ink"]}"/>')
    parts.append(f'<text x="{x + 12}" y="14" style="fill:{_COLOUR["ink"]}">goal</text>')
    return "".join(parts)
