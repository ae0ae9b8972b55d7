"""How often do the 95 % intervals contain the truth, when it is known? Simulated returns of R seeds on the same tasks.

    python benchmarks/coverage.py [--simulations 1000] [--seeds 5 10] [--tasks 40]

A return is ``seed effect + task effect + noise``: the noise is standard normal, the effects are normal of the sizes in
the table, a task's effect is the same for all seeds, and the truth is that of all seeds and tasks: 0 (for the
probability of improvement 0.5). "skewed": the seed effects are exponential.

- "mean", "IQM", "improvement": the intervals of ``ssm_metarl.evaluation.statistics``.
- "nested": seeds are resampled, tasks anew within each, plain percentiles of the mean.
- "stratified": seeds are resampled within each task on its own, plain percentiles of the mean.

A coverage that is 0.95 is measured with a standard error of sqrt(0.95 * 0.05 / simulations).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import numpy as np

from ssm_metarl.evaluation.statistics import Interval, bootstrap, bootstrap_mean, probability_of_improvement

RESAMPLES = 1000
SEED_EFFECTS = {"none": 0.0, "a third of the noise": 1 / 3, "as the noise": 1.0, "5 x the noise": 5.0}
TASK_EFFECTS = {"none": 0.0, "as the noise": 1.0, "5 x the noise": 5.0}


def nested(values_RK: np.ndarray) -> Interval:
    """The plain hierarchical bootstrap of the mean."""
    rng, (runs, tasks) = np.random.default_rng(0), values_RK.shape
    seeds = rng.integers(runs, size=(RESAMPLES, runs, 1))
    return _percentiles(values_RK, values_RK[seeds, rng.integers(tasks, size=(RESAMPLES, runs, tasks))])


def stratified(values_RK: np.ndarray) -> Interval:
    """The bootstrap of the mean that resamples runs within each task."""
    rng, (runs, tasks) = np.random.default_rng(0), values_RK.shape
    return _percentiles(values_RK, values_RK[rng.integers(runs, size=(RESAMPLES, runs, tasks)), np.arange(tasks)])


def _percentiles(values_RK: np.ndarray, drawn: np.ndarray) -> Interval:
    return Interval(values_RK.mean(), *np.quantile(drawn.mean(axis=(1, 2)), [0.025, 0.975]))


METHODS = {
    "mean": lambda values_RK: bootstrap_mean(values_RK, resamples=RESAMPLES),
    "IQM": lambda values_RK: bootstrap(values_RK, "iqm", resamples=RESAMPLES),
    "improvement": lambda values_RK: probability_of_improvement(values_RK, 0 * values_RK),
    "nested": nested,
    "stratified": stratified,
}
TRUTH = {"improvement": 0.5}
ONLY_SYMMETRIC = ("IQM", "improvement")


def simulate(
    rng: np.random.Generator, runs: int, tasks: int, seed_effect: float, task_effect: float, skewed: bool
) -> np.ndarray:
    """Returns [R, K] whose true mean is 0; symmetric around it unless ``skewed``."""
    seeds_R1 = rng.exponential(size=(runs, 1)) - 1 if skewed else rng.normal(size=(runs, 1))
    return seed_effect * seeds_R1 + task_effect * rng.normal(size=tasks) + rng.normal(size=(runs, tasks))


def coverage(simulations: int, *scenario) -> dict[str, float]:
    """Method -> share of simulations in which its interval contains the truth."""
    rng = np.random.default_rng(0)
    covered = dict.fromkeys(METHODS, 0)
    for _ in range(simulations):
        values_RK = simulate(rng, *scenario)
        for name, method in METHODS.items():
            _, low, high = method(values_RK)
            covered[name] += low <= TRUTH.get(name, 0.0) <= high
    return {name: count / simulations for name, count in covered.items()}


def scenarios(tasks: int, runs: int) -> Iterator[tuple[str, tuple]]:
    """First cells of a row, and the arguments of `simulate`."""
    for (seed_size, seed_effect), (task_size, task_effect) in itertools.product(
        SEED_EFFECTS.items(), TASK_EFFECTS.items()
    ):
        yield f"| {runs} | {seed_size} | {task_size} |", (runs, tasks, seed_effect, task_effect, False)
    yield f"| {runs} | as the noise, skewed | none |", (runs, tasks, 1.0, 0.0, True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--tasks", type=int, default=40)
    options = parser.parse_args()
    error = (0.95 * 0.05 / options.simulations) ** 0.5
    print(f"{options.tasks} tasks, {options.simulations} simulations per row (standard error {error:.3f})\n")
    print(f"| seeds | seed effect | task effect | {' | '.join(METHODS)} |")
    print("|---|---|---|" + "---|" * len(METHODS))
    for runs in options.seeds:
        for label, scenario in scenarios(options.tasks, runs):
            shares = coverage(options.simulations, *scenario)
            hidden = ONLY_SYMMETRIC if scenario[-1] else ()
            cells = " | ".join("" if name in hidden else f"{share:.3f}" for name, share in shares.items())
            print(f"{label} {cells} |", flush=True)


if __name__ == "__main__":
    main()
