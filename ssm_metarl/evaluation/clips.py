"""Clips: a policy on one task before and after it adapted, side by side.

Shape legend: B rows (episodes), O observation; a frame is uint8 [height, width, 3].
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssm_metarl.config import ConfigError
from ssm_metarl.deployment import DeployedPolicy
from ssm_metarl.env_runner.vector import MetaVectorEnv
from ssm_metarl.evaluation.live import Home, Lived
from ssm_metarl.evaluation.trajectories import NAVIGATION, Walks, draw_trajectories
from ssm_metarl.types import Stream, Task, make_rng

CLIPS, DRAWING = (".gif", ".webp"), ".svg"
PANEL_HEIGHT, CAPTION_HEIGHT, MARGIN = 270, 30, 8
FRAMES_PER_S = 25
MOST_FRAMES = 300
LAST_FRAME_S = 1.5
BEFORE, AFTER, AGENT, INK, MUTED, PAPER = "#7a7a7a", "#c2410c", "#2563eb", "#222222", "#777777", "#ffffff"
FILM_KEY = 1

Picture = Callable[[np.ndarray], np.ndarray]
"""From an observation [O] to a frame."""


@dataclass(frozen=True)
class Film:
    """One episode in pictures."""

    frames: list[Image.Image]
    """Of one height, at most `MOST_FRAMES` and the last."""
    total_return: float


@dataclass
class Camera:
    """A vector environment of one row that takes a picture of every n-th observation, and of the last."""

    vector: MetaVectorEnv
    picture: Picture
    frames: list[Image.Image] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vector, name)

    def reset(self, **arguments: Any) -> tuple[np.ndarray, dict[str, Any]]:
        observation_BO, info = self.vector.reset(**arguments)
        self._steps, self.frames = 0, [_panel(self.picture(observation_BO[0]))]
        return observation_BO, info

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        observation_BO, reward_B, terminated_B, truncated_B, info = self.vector.step(actions)
        self._steps += 1
        every = -(-self.vector.horizon // MOST_FRAMES)
        if self._steps % every == 0 or terminated_B[0] or truncated_B[0]:
            self.frames.append(_panel(self.picture(observation_BO[0])))
        return observation_BO, reward_B, terminated_B, truncated_B, info


def start_video(path: Path, policy: DeployedPolicy, home: Home) -> Callable[[Lived], None]:
    """Films the policy as it is now. The function that it returns films it once more, and writes both to ``path``.

    Args:
        path: ``.gif`` or ``.webp``; or ``.svg``, for the paths that the policy walks through Navigation2D as it lives.

    Raises:
        ConfigError: another suffix, no such folder, or the environment cannot be rendered here.
    """
    _check(path, home.family.id)
    if path.suffix == DRAWING:
        return lambda lived: path.write_text(draw_trajectories([Walks.of(lived)]), encoding="utf-8")
    before = film(policy, home)
    return lambda lived: save_clip(before, film(policy, home), path, str(home), lived.num_steps)


def _check(path: Path, env_id: str) -> None:
    if path.suffix not in (*CLIPS, DRAWING):
        raise ConfigError(f"--video {path}: the name must end in {', '.join(CLIPS)} (a clip) or {DRAWING} (a drawing)")
    if path.suffix == DRAWING and env_id != NAVIGATION:
        raise ConfigError(f"--video {path}: paths are drawn for {NAVIGATION} alone; name a file that ends in .gif")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--video {path}: there is no such folder; make it first")


def film(policy: DeployedPolicy, home: Home) -> Film:
    """One more episode of the task under the policy's present parameters; from the same start at every call.

    Raises:
        ConfigError: the environment cannot be rendered here.
    """
    # Renderers that draw into memory ask for a screen all the same where nothing tells them that there is none.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    vector = home.family.make_vector(1)
    try:
        camera = Camera(vector, _picture(home, vector))
        camera.set_tasks(home.task)
        rng = make_rng(policy.config.seed, Stream.EVALUATE, FILM_KEY, home.index)
        rollout = policy.life.play(camera, home.family.horizon, rng)
    finally:
        vector.close()
    return Film(camera.frames, float(rollout.return_B[0]))


def save_clip(before: Film, after: Film, path: Path, title: str, num_steps: int) -> None:
    """Writes both films side by side as an animated GIF or WebP; the shorter one waits at its end.

    Raises OSError: the file cannot be written.
    """
    steps = f"after {num_steps} step{'s' * (num_steps != 1)}"
    sides = [("before adaptation", BEFORE, before), (steps, AFTER, after)]
    frames, length = [], max(len(before.frames), len(after.frames))
    for t in range(length):
        panels = [shot.frames[min(t, len(shot.frames) - 1)] for _, _, shot in sides]
        over = [" (over)" if len(shot.frames) <= t else "" for _, _, shot in sides]
        captions = [
            (f"{what}: return {shot.total_return:.1f}{end}", colour)
            for (what, colour, shot), end in zip(sides, over, strict=True)
        ]
        frames.append(_sheet(panels, captions, title))
    durations = [1000 // FRAMES_PER_S] * (len(frames) - 1) + [int(LAST_FRAME_S * 1000)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _panel(frame: np.ndarray) -> Image.Image:
    image = Image.fromarray(frame)
    return image.resize((round(image.width * PANEL_HEIGHT / image.height), PANEL_HEIGHT), Image.Resampling.LANCZOS)


def _sheet(panels: Sequence[Image.Image], captions: Sequence[tuple[str, str]], title: str) -> Image.Image:
    width = sum(panel.width for panel in panels) + MARGIN * (len(panels) + 1)
    sheet = Image.new("RGB", (width, PANEL_HEIGHT + 2 * CAPTION_HEIGHT), PAPER)
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(size=15), MARGIN
    for panel, (caption, colour) in zip(panels, captions, strict=True):
        sheet.paste(panel, (x, CAPTION_HEIGHT))
        draw.text((x, 7), caption, fill=colour, font=font)
        draw.rectangle((x, CAPTION_HEIGHT, x + panel.width - 1, CAPTION_HEIGHT + PANEL_HEIGHT - 1), outline="#cccccc")
        x += panel.width + MARGIN
    draw.text((MARGIN, CAPTION_HEIGHT + PANEL_HEIGHT + 8), title, fill=MUTED, font=ImageFont.load_default(size=13))
    return sheet


def _picture(home: Home, vector: MetaVectorEnv) -> Picture:
    """How this task looks. The native families are numpy alone: gymnasium's own renderers are lent their state."""
    make = {
        NAVIGATION: _navigation,
        "ssm_metarl/CartPole-v0": _cartpole,
        "ssm_metarl/Pendulum-v0": _pendulum,
    }.get(home.family.id)
    picture = make(home.task) if make else _rendered(vector)

    def checked(observation_O: np.ndarray) -> np.ndarray:
        try:
            frame = np.asarray(picture(observation_O))
        except gymnasium.error.DependencyNotInstalled as error:
            raise ConfigError(
                f"--video: {home.family.id} cannot be rendered: {error}; the classic environments need "
                'pip install "ssm-metarl[video]"'
            ) from error
        # Renderers fail in as many ways as there are graphics stacks.
        except Exception as error:
            raise ConfigError(f"--video: {home.family.id} cannot be rendered here: {error}") from error
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ConfigError(f"--video: {home.family.id} does not render pictures (rgb_array) of its state")
        return frame

    return checked


def _rendered(vector: MetaVectorEnv) -> Picture:
    [env] = vector.envs
    # Families make environments that render nothing; rendering is decided by this attribute at each call.
    env.unwrapped.render_mode = "rgb_array"
    return lambda _: env.render()


def _cartpole(task: Task) -> Picture:
    twin = gymnasium.make("CartPole-v1", render_mode="rgb_array").unwrapped
    twin.length = task.get("length", twin.length)

    def picture(observation_O: np.ndarray) -> np.ndarray:
        twin.state = tuple(observation_O.tolist())
        return twin.render()

    return picture


def _pendulum(_: Task) -> Picture:
    twin = gymnasium.make("Pendulum-v1", render_mode="rgb_array").unwrapped

    def picture(observation_O: np.ndarray) -> np.ndarray:
        cos, sin, speed = observation_O.tolist()
        twin.state, twin.last_u = np.array([math.atan2(sin, cos), speed]), None
        return twin.render()

    return picture


def _navigation(task: Task) -> Picture:
    size, half = 3 * PANEL_HEIGHT, 1.0  # Drawn large and shrunk: smooth lines.
    path: list[tuple[float, float]] = []

    def place(x: float, y: float) -> tuple[float, float]:
        return (x / half + 1) / 2 * size, (1 - y / half) / 2 * size

    def picture(observation_O: np.ndarray) -> np.ndarray:
        path.append(place(*observation_O.tolist()))
        image = Image.new("RGB", (size, size), PAPER)
        draw = ImageDraw.Draw(image)
        goal = place(task["goal_x"], task["goal_y"])
        draw.circle(goal, 27, outline=INK, width=6)
        draw.circle(goal, 8, fill=INK)
        draw.line([*path, path[-1]], fill=MUTED, width=5, joint="curve")
        draw.circle(path[-1], 14, fill=AGENT)
        return np.asarray(image)

    return picture
