import numpy as np
import pytest

from ssm_metarl.evaluation.statistics import bootstrap_mean


def test_one_run_is_the_plain_bootstrap_over_tasks():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=40)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(40)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1)


def test_the_interval_covers_the_truth_when_seeds_differ():
    """Tasks within a seed share its luck: resampling tasks alone would cover about a third."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(100):
        values = rng.normal(size=(10, 1)) + 0.5 * rng.normal(size=(10, 20))
        interval = bootstrap_mean(values, resamples=400)
        covered += interval.low <= 0.0 <= interval.high
    assert covered >= 83


def test_the_same_values_give_the_same_interval():
    values = np.arange(12.0).reshape(3, 4)
    assert bootstrap_mean(values, resamples=100) == bootstrap_mean(values, resamples=100)


def test_a_constant_has_no_width():
    assert bootstrap_mean(np.full((2, 3), 1.5), resamples=50) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize("values", [[], [[]], [1.0, float("nan")]])
def test_nothing_or_nan_is_refused(values):
    with pytest.raises(ValueError, match="at least one value, all finite"):
        bootstrap_mean(np.array(values))
