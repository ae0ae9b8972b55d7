"""What random actions bring to light in an environment: what it returns that it should not, whether it repeats itself,
what a step costs. Every budget is looked at between steps. No shape suffixes: nothing here is known to have a shape.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Tuple

from ssm_metarl.env_runner.vector import MetaVectorEnv

BLOCK_SECONDS = 0.08

Fault = tuple[str, str, str]
"""level ("error" or "warning"), text, cure."""


@dataclass
class Played:
    """What some episodes of random actions brought to light; ``faults`` by what they are about, each text once."""

    faults: dict[str, list[Fault]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    """Of the finished episodes."""
    rewards: list[float] = field(default_factory=list)
    steps: int = 0
    broken: bool = False
    """There was no going on."""

    def add(self, about: str, level: str, text: str, cure: str = "") -> None:
        """Keeps the first fault of a kind, which its cure stands for."""
        faults = self.faults.setdefault(about, [])
        if not any(fault[2] == cure for fault in faults):
            faults.append((level, text, cure))


def said(error: BaseException) -> str:
    """An exception on one line: type and message."""
    text = " ".join(str(error).split())[:1000]
    return f"{type(error).__name__}: {text or 'without a message'}"


def play(env: gymnasium.Env, num_steps: int, endless_steps: int, seconds: float) -> Played:
    """Episodes of random actions; ``endless_steps`` of them if none ends before."""
    played, deadline = Played(), time.monotonic() + seconds
    env.action_space.seed(0)
    for seed in itertools.count():
        if not _reset(env, seed, played):
            return played
        for length in itertools.count(1):
            over = _step(env, played)
            if played.broken:
                return played
            is_spent = played.steps >= (num_steps if played.lengths or over else endless_steps)
            if over:
                played.lengths.append(length)
            if is_spent or time.monotonic() > deadline:
                return played
            if over:
                break
    return played


def _reset(env: gymnasium.Env, seed: int, played: Played) -> bool:
    try:
        returned = env.reset(seed=seed)
    except Exception as error:
        cure = "def reset(self, *, seed=None, options=None)" if "unexpected keyword" in str(error) else ""
        played.add("reset", "error", f"reset(seed={seed}) raised {said(error)}", cure)
        return False
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping)):
        text = f"reset returned {returned!r:.60}, which is no pair (observation, info)"
        played.add("reset", "error", text, "return observation, {}")
        return False
    _look(env.observation_space, returned[0], "reset", played)
    return True


def _step(env: gymnasium.Env, played: Played) -> bool:
    """Takes a step; returns whether the episode is over."""
    played.steps += 1
    action = env.action_space.sample()
    try:
        try:
            returned = env.step(action)
        except (TypeError, ValueError) as error:
            # A wrapper could not take apart what the environment returned.
            if "unpack" not in str(error):
                raise
            returned = env.unwrapped.step(action)
    except Exception as error:
        played.add("step", "error", f"step {played.steps} raised {said(error)}")
        played.broken = True
        return False
    if not (isinstance(returned, tuple) and len(returned) == 5 and isinstance(returned[4], Mapping)):
        size = f"{len(returned)} values" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
        text = f"step returned {size}, not (observation, reward, terminated, truncated, info)"
        played.add("step", "error", text, "terminated: the task is over; truncated: cut by a limit; info: a dict")
        played.broken = True
        return False
    observation, reward, terminated, truncated, _ = returned
    _look(env.observation_space, observation, f"step {played.steps}", played)
    _look_at_reward(reward, played)
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(flag, bool | np.bool_):
            level = "warning" if isinstance(flag, int | np.integer) else "error"
            text = f"{name} is {flag!r:.40}, a {type(flag).__name__}, not a bool"
            played.add("step", level, text, f"return bool({name})")
    return _truth(terminated) or _truth(truncated)


def _truth(flag: Any) -> bool:
    try:
        return bool(flag)
    except ValueError:  # an array
        return True


def _look_at_reward(reward: Any, played: Played) -> None:
    is_number = isinstance(reward, int | float | np.number | np.bool_) or (
        isinstance(reward, np.ndarray) and reward.shape == () and reward.dtype.kind in "iufb"
    )
    if not is_number or isinstance(reward, np.complexfloating):
        kind = f"an array of shape {reward.shape}" if isinstance(reward, np.ndarray) else f"a {type(reward).__name__}"
        text = f"the reward of step {played.steps} is {reward!r:.40}, {kind}, not a number"
        played.add("reward", "error", text, "return float(reward)")
    elif not np.isfinite(reward):
        text = f"the reward of step {played.steps} is {float(reward)}, not finite"
        played.add("reward", "error", text, "look for a division by 0 or a logarithm of 0 in it")
    else:
        played.rewards.append(float(reward))


def _look(space: gymnasium.Space, observation: Any, when: str, played: Played, name: str = "") -> None:
    """Compares an observation with its space, part by part; a fault of each kind is kept once."""
    if isinstance(space, Dict | Tuple):
        keys = list(space.spaces) if isinstance(space, Dict) else list(range(len(space.spaces)))
        whole = isinstance(observation, Mapping if isinstance(space, Dict) else tuple) and len(observation) == len(keys)
        if not whole or (isinstance(space, Dict) and set(observation) != set(keys)):
            text = f"the observation{name} of {when} has not the parts {keys}: {observation!r:.60}"
            played.add("observation", "error", text, "return what observation_space says")
            return
        for key in keys:
            _look(space.spaces[key], observation[key], when, played, f"{name}[{key!r}]")
    elif isinstance(space, Box):
        for fault in _faults_of_array(space, observation, f"the observation{name} of {when}"):
            played.add("observation", *fault)
    elif not space.contains(observation):
        text = f"the observation{name} of {when} is {observation!r:.60}, which is not in {space}"
        played.add("observation", "error", text, "correct it or observation_space")


def _faults_of_array(space: Box, observation: Any, what: str) -> list[Fault]:
    try:
        values = np.asarray(observation)
    except ValueError:
        return [("error", f"{what} is ragged: {observation!r:.60}", f"return an array of shape {space.shape}")]
    if values.dtype.kind not in "iufb":
        kind = values.dtype if isinstance(observation, np.ndarray) else type(observation).__name__
        return [("error", f"{what} is {observation!r:.60}, of type {kind}, not numbers", f"return {space.dtype}")]
    if values.shape != space.shape:
        text = f"{what} has shape {values.shape}, its space says {space.shape}"
        return [("error", text, "correct the shape of observation_space, or what is returned")]
    if not np.isfinite(values).all():
        first = np.argwhere(~np.isfinite(values))[0].tolist()
        text = f"{what} is not finite: {values[tuple(first)]} at {first}"
        return [
            ("error", text, "look for a division by 0, or a simulation that explodes: smaller actions or time steps")
        ]
    faults = []
    if not isinstance(observation, np.ndarray | np.generic) or not np.can_cast(values.dtype, space.dtype):
        kind = values.dtype if isinstance(observation, np.ndarray | np.generic) else type(observation).__name__
        text = f"{what} is of type {kind}, its space says {space.dtype}; it is converted at every step"
        faults.append(("warning", text, f"return np.asarray(observation, np.{space.dtype})"))
    outside = (values < space.low) | (values > space.high)
    if outside.any():
        at = tuple(np.argwhere(outside)[0].tolist())
        text = f"{what} is outside the bounds of its space: {values[at]:.4g} at {list(at)}"
        text += f", between {space.low[at]:.4g} and {space.high[at]:.4g}"
        faults.append(("warning", text, "make the bounds of observation_space wider, or clip"))
    return faults


def canonical(value: Any) -> Any:
    """The same for equal values, whatever arrays they are in; does not change when the environment writes into them."""
    if isinstance(value, Mapping):
        return tuple((repr(key), canonical(value[key])) for key in sorted(value, key=repr))
    if isinstance(value, tuple | list):
        return tuple(map(canonical, value))
    return (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)


def episode(
    env: gymnasium.Env, seed: int, num_steps: int, seconds: float, beside: gymnasium.Env | None = None
) -> list[Any]:
    """What happens in one episode; ``beside``: another environment that is played in between."""
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(num_steps)]
    happened, deadline = [canonical(env.reset(seed=seed)[0])], time.monotonic() + seconds
    over = True
    for action in actions:
        if beside is not None:
            over = any(beside.step(beside.action_space.sample())[2:4]) if not over else not beside.reset(seed=seed + 1)
        observation, reward, terminated, truncated, _ = env.step(action)
        happened.append(canonical((observation, reward, terminated, truncated)))
        if terminated or truncated or time.monotonic() > deadline:
            break
    return happened


def row_episode(env: MetaVectorEnv, num_steps: int, seconds: float) -> list[Any]:
    """What happens in the first row in one episode of random actions, under seed 0."""
    env.action_space.seed(0)
    observation_NO, _ = env.reset(seed=0)
    happened, deadline = [canonical(observation_NO[0])], time.monotonic() + seconds
    for _ in range(num_steps):
        observation_NO, reward_N, terminated_N, truncated_N, _ = env.step(env.action_space.sample())
        if not np.isfinite(observation_NO).all() or not np.isfinite(reward_N).all():
            raise ValueError(f"an observation or a reward is not finite at step {len(happened)}, tasks {env.tasks}")
        happened.append(canonical((observation_NO[0], reward_N[0], terminated_N[0], truncated_N[0])))
        if terminated_N[0] or truncated_N[0] or time.monotonic() > deadline:
            break
    return happened


def first_difference(one: list[Any], other: list[Any]) -> int | None:
    """The first step at which two episodes differ, as far as both were played."""
    return next((step for step, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)


def stepper(env: gymnasium.Env) -> Callable[[], int]:
    """Takes a step at each call, resets included; returns how many environment steps that was."""
    env.action_space.seed(0)
    actions = itertools.cycle([env.action_space.sample() for _ in range(64)])
    env.reset(seed=0)

    def advance() -> int:
        _, _, terminated, truncated, _ = env.step(next(actions))
        if terminated or truncated:
            env.reset()
        return 1

    return advance


def row_stepper(env: MetaVectorEnv) -> Callable[[], int]:
    """The same for the rows of an environment in autoreset mode DISABLED: all begin anew when the last has ended."""
    env.action_space.seed(0)
    actions = itertools.cycle([env.action_space.sample() for _ in range(64)])
    env.reset(seed=0)
    playing = env.num_envs

    def advance() -> int:
        nonlocal playing
        _, _, terminated_N, truncated_N, _ = env.step(next(actions))
        stepped = playing
        playing -= np.count_nonzero(terminated_N | truncated_N)
        if playing == 0:
            env.reset()
            playing = env.num_envs
        return stepped

    return advance


def cpu_seconds(steppers: Mapping[str, Callable[[], int]], num_blocks: int, seconds: float) -> dict[str, float]:
    """CPU seconds of a step of each: the median of blocks that take turns, so that a busy machine slows all as much."""
    blocks: dict[str, list[float]] = {name: [] for name in steppers}
    deadline = time.monotonic() + seconds
    for _ in range(num_blocks):
        for name, advance in steppers.items():
            blocks[name].append(_block(advance))
        if time.monotonic() > deadline:
            break
    return {name: float(np.median(costs)) for name, costs in blocks.items()}


def _block(advance: Callable[[], int]) -> float:
    began, cpu, steps, chunk = time.monotonic(), time.process_time(), 0, 1
    while not steps or time.monotonic() - began < BLOCK_SECONDS:
        for _ in range(chunk):
            steps += advance()
        # So that clocks are read rarely, and yet a slow step is taken only once.
        chunk = min(2 * chunk, 32)
    return (time.process_time() - cpu) / steps
