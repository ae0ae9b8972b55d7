"""Part of `switching.py`: a model that lives through changes of the linear system in `linear_system.py`.

The model is a small network on the window of the last two observations and inputs. `MetaMAML` trains it so that three
gradient steps on 3 to 10 steps of one regime prepare it for the next 10. Then it meets test tasks, prequentially:
predict, see the target, `observe` the error, `adapt` to the last 10 steps; the next step. Nobody announces a change.

Shape legend: R seeds, K tasks, T time steps, F features.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import linear_system
import numpy as np
import torch
from linear_system import FORGETTING, LAGS, TEST, TRAIN, WINDOWS, Sequence, sample, scores
from torch import Tensor, nn

from ssm_metarl.adaptation.test_time_adaptation import AdaptationConfig, Adapter
from ssm_metarl.core.baselines import MLP
from ssm_metarl.core.ssm import SSM
from ssm_metarl.evaluation.statistics import Interval, bootstrap, paired_difference
from ssm_metarl.meta_rl.meta_maml import MetaMAML
from ssm_metarl.runtime.process import limit_threads

STRATEGIES = ("none", "online", "meta")
INNER_LR, INNER_STEPS, OUTER_LR, HIDDEN = 0.1, 3, 3e-3, 32
SUPPORT, QUERY = (3, 10), 10
"""Least and most steps of a regime to adapt to; steps to be judged on."""
MEMORY_WIDTH, MEMORY_LAYERS, MEMORY_LR, MEMORY_STEPS = 48, 2, 5e-3, 120
FULL = {"train_tasks": 300, "test_tasks": 20, "iterations": 300, "tasks_per_iteration": 8, "memory_iterations": 1500}
QUICK = {"train_tasks": 10, "test_tasks": 2, "iterations": 5, "tasks_per_iteration": 2, "memory_iterations": 5}
ADAPTATION = AdaptationConfig(lr=INNER_LR)
REFERENCES = ("persistence", "ARX(2), frozen", f"recursive least squares, {FORGETTING}", "oracle")
MEMORY = "memory (SSM), frozen"
COMPARISONS = (
    ("meta", "none"),
    ("online", "none"),
    ("meta", "online"),
    *(("meta", name) for name in (*REFERENCES[1:3], MEMORY)),
)


def run_seed(seed: int, quick: bool) -> dict[str, Any]:
    """Everything that one training seed has to say: errors by predictor and window [K], and the alarms."""
    limit_threads()
    size = QUICK if quick else FULL
    train, test = sample(TRAIN, seed, size["train_tasks"]), sample(TEST, 0, size["test_tasks"])
    weights_F = linear_system.fit_ridge(train)
    began = time.process_time()
    memory = train_memory(train, seed, size["memory_iterations"])
    half_way = time.process_time()
    model = train_model(train, seed, size["iterations"], size["tasks_per_iteration"])
    cpu_s = {"meta-training": time.process_time() - half_way, MEMORY: half_way - began}
    predictors = {
        REFERENCES[0]: linear_system.persistence,
        REFERENCES[1]: lambda task: linear_system.frozen_arx(task, weights_F),
        REFERENCES[2]: lambda task: linear_system.recursive_least_squares(*linear_system.windows(task)),
        REFERENCES[3]: linear_system.oracle,
        MEMORY: lambda task: remember(memory, task),
    }
    errors = {name: [scores(task, predict(task)) for task in test] for name, predict in predictors.items()}
    alarms = []
    for strategy in STRATEGIES:
        lives = [live(model, task, strategy) for task in test]
        errors[strategy] = [scores(task, prediction_T) for task, (prediction_T, _) in zip(test, lives, strict=True)]
        if strategy == "meta":
            alarms = [count_alarms(task, times) for task, (_, times) in zip(test, lives, strict=True)]
    return {
        "seed": seed,
        "errors": {name: {w: [round(task[w], 5) for task in tasks] for w in WINDOWS} for name, tasks in errors.items()},
        "alarms": alarms,
        "cpu_s": cpu_s,
    }


def train_model(tasks: list[Sequence], seed: int, iterations: int, tasks_per_iteration: int) -> nn.Module:
    """Meta-trains the network on single regimes of the training tasks."""
    model, rng = _seeded(lambda: MLP(2 * LAGS, 1, HIDDEN), seed), np.random.default_rng(seed)
    data = [_pairs(task) for task in tasks]
    changes = [(i, int(t)) for i, task in enumerate(tasks) for t in np.flatnonzero(task.offset_T[LAGS:] == 0)]
    learner = MetaMAML(model, INNER_LR, OUTER_LR, num_inner_steps=INNER_STEPS)
    schedule = torch.optim.lr_scheduler.LinearLR(learner.outer_optimizer, 1.0, 0.0, iterations)
    for _ in range(iterations):
        for _ in range(tasks_per_iteration):
            i, change = changes[rng.integers(len(changes))]
            support = int(rng.integers(SUPPORT[0], SUPPORT[1] + 1))
            start = change + int(rng.integers(linear_system.SHORTEST - support - QUERY + 1))
            x_TF, y_T1 = (signal[start : start + support + QUERY] for signal in data[i])
            adapted = learner.inner_loop(x_TF[:support], y_T1[:support])
            (learner.outer_loop(x_TF[support:], y_T1[support:], adapted) / tasks_per_iteration).backward()
        learner.outer_optimizer.step()
        schedule.step()
    return model


def live(model: nn.Module, task: Sequence, strategy: str) -> tuple[np.ndarray, list[int]]:
    """Predictions [T - LAGS] of a copy of the model that adapts as it goes, and when it took a task for a new one."""
    model = copy.deepcopy(model)
    adapter = Adapter(model, ADAPTATION, strategy)
    x_TF, y_T1 = _pairs(task)
    prediction_T, alarms, begun = np.empty(len(y_T1)), [], 0
    for t in range(len(y_T1)):
        with torch.no_grad():
            prediction_T[t] = model(x_TF[t : t + 1]).item()
        # A squared error has a heavy tail; its cube root is nearly normal (Wilson and Hilferty 1931), as the test asks.
        record = adapter.observe({"loss": ((prediction_T[t] - y_T1[t].item()) ** 2) ** (1 / 3)})
        if strategy == "meta" and record["new_task"]:
            alarms.append(t)
            begun = t
        first = max(begun, t + 1 - SUPPORT[1])
        if t + 1 - first >= SUPPORT[0]:
            recent = {"observations": x_TF[first : t + 1], "targets": y_T1[first : t + 1]}
            adapter.adapt(recent, nn.functional.mse_loss)
    return prediction_T, alarms


def train_memory(tasks: list[Sequence], seed: int, iterations: int) -> SSM:
    """Trains a state space model to predict through whole tasks, changes and all; no inner loop."""
    model = _seeded(lambda: SSM(2, 1, MEMORY_WIDTH, n_layers=MEMORY_LAYERS), seed)
    rng, optimizer = np.random.default_rng(seed), torch.optim.Adam(model.parameters(), MEMORY_LR)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, iterations)
    x_KTF, y_KT1 = (torch.stack(signals) for signals in zip(*map(_steps, tasks), strict=True))
    for _ in range(iterations):
        rows, start = (
            torch.from_numpy(rng.integers(len(tasks), size=8)),
            int(rng.integers(x_KTF.shape[1] - MEMORY_STEPS)),
        )
        span = slice(start, start + MEMORY_STEPS)
        loss = nn.functional.mse_loss(model(x_KTF[rows, span]), y_KT1[rows, span])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


def remember(model: SSM, task: Sequence) -> np.ndarray:
    """Predictions [T - LAGS] of a frozen model that carries its state through the task."""
    with torch.no_grad():
        return model(_steps(task)[0][None])[0, LAGS - 1 :, 0].double().numpy()


def count_alarms(task: Sequence, alarms: list[int]) -> dict[str, Any]:
    """Delays of the changes that were found before the next one, and how many alarms there were without a change."""
    offset_T = task.offset_T[LAGS:]
    changes, found, false = int((offset_T == 0).sum()), {}, 0
    for t in alarms:
        change = t - int(offset_T[t])
        if offset_T[t] < 0 or change in found:
            false += 1
        else:
            found[change] = int(offset_T[t])
    return {"changes": changes, "delays": list(found.values()), "false": false, "calls": len(offset_T)}


def tables(runs: list[dict[str, Any]]) -> str:
    """The report, in markdown."""
    errors = {
        name: {w: np.array([run["errors"][name][w] for run in runs]) for w in WINDOWS} for name in runs[0]["errors"]
    }
    seeds, tasks = errors["meta"]["all"].shape
    costs = [f"{name}: {np.mean([run['cpu_s'][name] for run in runs]):.0f} CPU-s" for name in runs[0]["cpu_s"]]
    lines = [
        f"linear: squared error / variance of the target; {seeds} training seeds x {tasks} test tasks "
        f"({'; '.join(costs)})",
        "",
        f"| | {' | '.join(WINDOWS)} |",
        "|---" * (len(WINDOWS) + 1) + "|",
    ]
    for name in (*REFERENCES, MEMORY, *STRATEGIES):
        cells = [_text(bootstrap(errors[name][w])) for w in WINDOWS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for a, b in COMPARISONS:
        cells = [_text(paired_difference(errors[a][w], errors[b][w])) for w in WINDOWS]
        lines.append(f"| **{a} - {b}** | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_claims(errors), "", _alarm_text([task for run in runs for task in run["alarms"]])])


def _claims(errors: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """What is promised, and whether the whole interval keeps it."""
    shock, _, steady, everything = WINDOWS
    lines = []
    for strategy in ("online", "meta"):
        for window in (steady, everything):
            difference = paired_difference(errors[strategy][window], errors["none"][window])
            lines.append(f"{strategy} below none, {window}: {_text(difference)} {verdict(difference.high < 0)}")
        twice = paired_difference(errors[strategy][shock], 2 * errors["none"][shock])
        share = errors[strategy][shock].mean() / errors["none"][shock].mean()
        lines.append(
            f"{strategy} <= 2 x none, {shock}: {share:.2f} x, {strategy} - 2 none = {_text(twice)} "
            f"{verdict(twice.high <= 0)}"
        )
    return lines


def _alarm_text(tasks: list[dict[str, Any]]) -> str:
    changes, false, calls = (sum(task[key] for task in tasks) for key in ("changes", "false", "calls"))
    delays = [delay for task in tasks for delay in task["delays"]]
    early = [sum(delay <= limit for delay in delays) for limit in (1, 4)]
    return (
        f"meta found {len(delays)} of {changes} changes, {early[0]} by the first or second wrong prediction, "
        f"{early[1]} by the fifth; false alarms: {false} in {calls} calls, {false / calls:.4f} a call "
        f"({ADAPTATION.false_alarm_rate} asked for)"
    )


def verdict(holds: bool) -> str:
    """Of a promise."""
    return "holds" if holds else "MISSED"


def _text(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _pairs(task: Sequence) -> tuple[Tensor, Tensor]:
    """`linear_system.windows` as tensors [T - LAGS, F] and [T - LAGS, 1]."""
    features_TF, target_T = linear_system.windows(task)
    return torch.tensor(features_TF, dtype=torch.float32), torch.tensor(target_T[:, None], dtype=torch.float32)


def _steps(task: Sequence) -> tuple[Tensor, Tensor]:
    """(observation, input) at each step but the last, [T - 1, 2], and the next observation, [T - 1, 1]."""
    both_T2 = np.column_stack([task.observation_T, task.input_T])[:-1]
    return torch.tensor(both_T2, dtype=torch.float32), torch.tensor(task.observation_T[1:, None], dtype=torch.float32)


def _seeded(make: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
