"""How fast is the state space core? CPU time of `SSM` beside nn.GRU and beside its recurrence as a loop under autograd.

    python benchmarks/model.py [--quick] [--json FILE]

One thread, process time, measured in turn (ssm, GRU, loop, ssm, ...) in one process; medians, and ratios of pairs that
were measured side by side with a 95 % bootstrap interval. The whole is done in two processes, with and without the
allocator settings that every process of a run gets (``MALLOC_*`` of ``ssm_metarl.runtime.process``).

- forward: actions' logits of 20 episodes of 200 steps, without a graph.
- forward and backward: the gradient of a policy-gradient loss of them.
- meta-gradient: one inner gradient step on all parameters, its graph kept, a second batch, backward through both.
- step: one observation for each of B rows with the state carried; `SSM.fold` against nn.GRU's module in inference mode.

nn.GRU reads the observations directly and has the same linear head; `SSM` has an encoder more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.func import functional_call

from ssm_metarl.core import ssm
from ssm_metarl.runtime.process import ENVIRONMENT

OBSERVATION, ACTIONS, HIDDEN, ROWS, INNER_LR = 20, 6, 64, 20, 0.1
STEP_ROWS = (1, 20, 64)
META_CLAIM, STEP_CLAIM = 2.8, 0.75
MALLOC = [name for name in ENVIRONMENT if name.startswith("MALLOC")]


class GRU(nn.Module):
    """The usual recurrent policy: nn.GRU and a linear head, time first."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(OBSERVATION, HIDDEN), nn.Linear(HIDDEN, ACTIONS)

    def forward(self, x_TBO: Tensor, h_LBN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        states_TBN, h_LBN = self.gru(x_TBO, h_LBN)
        return self.head(states_TBN), h_LBN


class TimeMajorSSM(ssm.SSM):
    """The state space core as a policy uses it, time first."""

    forward = ssm.SSM.unroll


def scan_as_a_loop(a_TBN: Tensor, b_TBN: Tensor, initial_BN: Tensor | None = None) -> Tensor:
    """What autograd would do without `linear_scan`."""
    h_BN, states = torch.zeros_like(b_TBN[0]) if initial_BN is None else initial_BN, []
    for a_BN, b_BN in zip(a_TBN.unbind(), b_TBN.unbind(), strict=True):
        h_BN = torch.addcmul(b_BN, a_BN, h_BN)
        states.append(h_BN)
    return torch.stack(states)


def works(model: nn.Module, steps: int) -> dict[str, Callable[[], object]]:
    """The three works on sequences, as functions without arguments."""
    params = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randn(steps, ROWS, OBSERVATION, generator=generator),
            torch.randint(ACTIONS, (steps, ROWS), generator=generator),
            torch.randn(steps, ROWS, generator=generator),
        )
        for _ in range(2)
    ]

    def loss(params: dict[str, Tensor], x_TBO: Tensor, action_TB: Tensor, advantage_TB: Tensor) -> Tensor:
        logits_TBA, _ = functional_call(model, params, (x_TBO,))
        return -(Categorical(logits=logits_TBA, validate_args=False).log_prob(action_TB) * advantage_TB).mean()

    def forward() -> object:
        with torch.no_grad():
            return model(batches[0][0])

    def backward() -> object:
        return torch.autograd.grad(loss(params, *batches[0]), list(params.values()))

    def meta_gradient() -> object:
        grads = torch.autograd.grad(loss(params, *batches[0]), list(params.values()), create_graph=True)
        adapted = {name: p - INNER_LR * g for (name, p), g in zip(params.items(), grads, strict=True)}
        return torch.autograd.grad(loss(adapted, *batches[1]), list(params.values()))

    return {"forward": forward, "forward and backward": backward, "meta-gradient": meta_gradient}


def with_a_loop(work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with mock.patch.object(ssm, "linear_scan", scan_as_a_loop):
            return work()

    return run


def single_steps(model: ssm.SSM, gru: GRU, rows: int, calls: int) -> dict[str, Callable[[], object]]:
    """``calls`` single steps of both, the state carried along."""
    folded, x_TBO = model.fold(), torch.randn(1, rows, OBSERVATION, generator=torch.Generator().manual_seed(1))

    def folded_ssm() -> None:
        x_BO, carry = x_TBO[0].numpy(), np.zeros((1, rows, HIDDEN), np.float32)
        for _ in range(calls):
            _, carry = folded(x_BO, carry)

    @torch.inference_mode()
    def module_gru() -> None:
        carry = torch.zeros(1, rows, HIDDEN)
        for _ in range(calls):
            _, carry = gru(x_TBO, carry)

    return {"ssm": folded_ssm, "nn.GRU": module_gru}


def measure(arms: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each arm, ``repeats`` times in turn, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats + 2):
        for name, work in arms.items():
            began = time.process_time()
            work()
            seconds[name].append(time.process_time() - began)
    return {name: values[2:] for name, values in seconds.items()}


def measure_all(quick: bool) -> dict[str, dict[str, list[float]]]:
    """Every row of the table: CPU seconds by work and arm."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps, repeats, calls = (20, 3, 10) if quick else (200, 25, 200)
    model, gru = TimeMajorSSM(OBSERVATION, ACTIONS, HIDDEN), GRU()
    ours, theirs = works(model, steps), works(gru, steps)
    rows = {}
    for name in ours:
        arms = {"ssm": ours[name], "nn.GRU": theirs[name], "loop": with_a_loop(ours[name])}
        rows[f"{name}, T={steps}"] = measure(arms, repeats)
    for batch in STEP_ROWS:
        seconds = measure(single_steps(model, gru, batch, calls), repeats)
        rows[f"step, B={batch}"] = {arm: [s / calls for s in values] for arm, values in seconds.items()}
    return rows


def in_a_process(malloc: bool, quick: bool) -> dict[str, dict[str, list[float]]]:
    """`measure_all` in a fresh process, because the allocator reads its settings once."""
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC} | {
        name: value for name, value in ENVIRONMENT.items() if malloc or name not in MALLOC
    }
    command = [sys.executable, __file__, "--measure", *(["--quick"] if quick else [])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float, float]:
    """Median ratio of pairs measured side by side, with its 95 % bootstrap interval."""
    ratios = np.array(numerator) / np.array(denominator)
    draws = np.random.default_rng(0).choice(ratios, (4000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def table(results: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    lines = ["| work | MALLOC | ssm | nn.GRU | loop | nn.GRU / ssm | loop / ssm |", "|---|---|---|---|---|---|---|"]
    for setting, rows in results.items():
        for name, arms in rows.items():
            unit, scale = ("µs", 1e6) if name.startswith("step") else ("ms", 1e3)
            times = [
                f"{np.median(arms[arm]) * scale:.1f} {unit}" if arm in arms else "" for arm in ("ssm", "nn.GRU", "loop")
            ]
            speedups = [
                "{:.2f} [{:.2f}, {:.2f}]".format(*ratio(arms[arm], arms["ssm"])) if arm in arms else ""
                for arm in ("nn.GRU", "loop")
            ]
            lines.append(f"| {' | '.join([name, setting, *times, *speedups])} |")
    return "\n".join(lines)


def claims(rows: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, object]]:
    """What the project promises of these numbers, and whether they hold (with the MALLOC settings)."""
    found = {}
    for name, arms in rows.items():
        if name.startswith("meta"):
            value, low, high = ratio(arms["nn.GRU"], arms["ssm"])
            found[f"{name}: nn.GRU / ssm >= {META_CLAIM}"] = (value, low, high, value >= META_CLAIM)
        elif name.startswith("step"):
            value, low, high = ratio(arms["ssm"], arms["nn.GRU"])
            found[f"{name}: ssm / nn.GRU <= {STEP_CLAIM}"] = (value, low, high, value <= STEP_CLAIM)
    return {
        claim: {"ratio": value, "interval": [low, high], "holds": holds}
        for claim, (value, low, high, holds) in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a few short repeats: does it run? (its numbers mean nothing)"
    )
    parser.add_argument("--json", type=Path, help="write every measured number into this file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure_all(arguments.quick)))
        return

    results = {setting: in_a_process(setting == "set", arguments.quick) for setting in ("set", "not set")}
    repeats = len(next(iter(results["set"].values()))["ssm"])
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    print(
        *(f"{name} {version}," for name, version in versions.items()),
        f"{platform.machine()}, one thread, n = {repeats}",
    )
    print(f"{ROWS} rows, hidden {HIDDEN}, observations {OBSERVATION}, actions {ACTIONS}; medians of CPU time\n")
    print(table(results), end="\n\n")
    promised = claims(results["set"])
    for claim, c in promised.items():
        print(f"{claim}: {c['ratio']:.2f} {np.round(c['interval'], 2).tolist()} {'holds' if c['holds'] else 'MISSED'}")
    if arguments.json:
        report = {"versions": versions, "repeats": repeats, "claims": promised, "seconds": results}
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
