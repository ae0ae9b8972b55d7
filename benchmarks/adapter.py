"""What a step of the `Adapter` costs beside the same step written by hand in torch, in CPU time.

    python benchmarks/adapter.py [--quick] [--profile] [--json FILE]

A 64-wide `SSM` on a batch of 32 single steps and on 8 sequences of 50 steps (4 observations, 2 outputs), mean squared
error, strategy ``online`` with the shipped settings: one guarded gradient step per call.

- bare: forward, backward, ``clip_grad_norm_``, ``optimizer.step()``, ``zero_grad()``, with torch's SGD and with Adam.
- bare + loss: SGD, and then the loss under the new parameters, which the Adapter reports in ``info["loss"]``.

One thread, process time, measured in turn (adapter, bare, adapter, ...) in one process: medians, and the ratio of pairs
measured side by side with its 95 % bootstrap interval. ``--profile`` prints where the Adapter's time goes.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import json
import pstats
import sys
from collections.abc import Callable
from pathlib import Path

from ssm_metarl.runtime.process import prepare_process

if __name__ == "__main__":
    prepare_process()

import numpy as np
import torch
from model import measure, ratio
from torch import nn

from ssm_metarl.adaptation.test_time_adaptation import AdaptationConfig, Adapter
from ssm_metarl.core.ssm import SSM
from ssm_metarl.runtime.checkpoint import versions

OBSERVATION, OUTPUTS, HIDDEN, CLAIM = 4, 2, 64, 1.25
SHAPES = {"32 single steps": (32,), "8 sequences of 50": (8, 50)}
CONFIG = AdaptationConfig()

Work = Callable[[], object]


def make_batch(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Random observations and targets."""
    generator = torch.Generator().manual_seed(1)
    return {
        "observations": torch.randn(*shape, OBSERVATION, generator=generator),
        "targets": torch.randn(*shape, OUTPUTS, generator=generator),
    }


def bare(model: nn.Module, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, report: bool) -> Work:
    """One step as everybody writes it; ``report``: with the loss afterwards."""

    def step() -> object:
        loss = nn.functional.mse_loss(model(batch["observations"]), batch["targets"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CONFIG.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if not report:
            return loss.item()
        with torch.no_grad():
            return nn.functional.mse_loss(model(batch["observations"]), batch["targets"]).item()

    return step


def make_arms(shape: tuple[int, ...]) -> dict[str, Work]:
    """The works, each on a model of its own with the same parameters."""
    torch.manual_seed(0)
    model, batch = SSM(OBSERVATION, OUTPUTS, HIDDEN), make_batch(shape)
    models = [copy.deepcopy(model) for _ in range(4)]
    adapter = Adapter(models[0], CONFIG, "online")
    sgd, adam = (kind(m.parameters(), CONFIG.lr) for kind, m in zip(OPTIMIZERS, models[1:3], strict=True))
    return {
        "adapter": lambda: adapter.adapt(batch, nn.functional.mse_loss),
        "bare, SGD": bare(models[1], batch, sgd, report=False),
        "bare, Adam": bare(models[2], batch, adam, report=False),
        "bare + loss": bare(models[3], batch, torch.optim.SGD(models[3].parameters(), CONFIG.lr), report=True),
    }


OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam)


def repeated(work: Work, calls: int) -> Work:
    def run() -> None:
        for _ in range(calls):
            work()

    return run


def measure_all(quick: bool) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of one call, by shape and arm."""
    repeats, calls = (3, 3) if quick else (60, 50)
    seconds = {}
    for name, shape in SHAPES.items():
        arms = {arm: repeated(work, calls) for arm, work in make_arms(shape).items()}
        seconds[name] = {arm: [s / calls for s in values] for arm, values in measure(arms, repeats).items()}
    return seconds


def claims(seconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, object]]:
    """What is promised of the ratios to a bare step, whether it holds, and the other ratios beside it."""
    found = {}
    for name, arms in seconds.items():
        for arm in arms:
            if arm != "adapter":
                value, low, high = ratio(arms["adapter"], arms[arm])
                found[f"{name}: adapter / {arm}"] = {
                    "ratio": value,
                    "interval": [low, high],
                    "holds": value <= CLAIM if arm != "bare + loss" else None,
                }
    return found


def print_tables(seconds: dict[str, dict[str, list[float]]], promised: dict[str, dict[str, object]]) -> None:
    arms = list(next(iter(seconds.values())))
    print(f"| batch | {' | '.join(arms)} |")
    print("|---" * (len(arms) + 1) + "|")
    for name, values in seconds.items():
        print(f"| {name} | {' | '.join(f'{np.median(values[arm]) * 1e6:.0f} µs' for arm in arms)} |")
    print()
    for claim, c in promised.items():
        verdict = {None: "", True: f" <= {CLAIM} holds", False: f" <= {CLAIM} MISSED"}[c["holds"]]
        print(f"{claim}: {c['ratio']:.3f} {np.round(c['interval'], 3).tolist()}{verdict}")


def profile() -> None:
    """Where the time of 500 calls goes."""
    for name, shape in SHAPES.items():
        work = make_arms(shape)["adapter"]
        repeated(work, 20)()
        profiler = cProfile.Profile()
        profiler.runcall(repeated(work, 500))
        print(f"\n{name}")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few short repeats: does it run?")
    parser.add_argument("--profile", action="store_true", help="where the Adapter's time goes")
    parser.add_argument("--json", type=Path, help="write every measured number into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.profile:
        profile()
        return
    seconds = measure_all(options.quick)
    promised = claims(seconds)
    repeats = len(seconds[next(iter(SHAPES))]["adapter"])
    print(f"`{' '.join(sys.argv)}`; {versions()}; one thread, CPU time, n = {repeats}\n")
    print_tables(seconds, promised)
    if options.json:
        report = {"command": " ".join(sys.argv), "versions": versions(), "n": repeats}
        report |= {"claims": promised, "seconds": seconds}
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
