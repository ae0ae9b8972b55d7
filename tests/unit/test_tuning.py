"""Sweeps without Ray: files, spaces, rules, books, and the work on a trial."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ssm_metarl.cli import main
from ssm_metarl.config import ConfigError, TrainConfig, load_config
from ssm_metarl.env_runner.tasks import TaskError
from ssm_metarl.evaluation.statistics import Interval
from ssm_metarl.runtime.checkpoint import CheckpointError
from ssm_metarl.runtime.driver import MetaTrainer
from ssm_metarl.runtime.metrics import read_metrics
from ssm_metarl.runtime.run_folder import locked
from ssm_metarl.tuning import compare, propose, search, sweep, table, trials
from ssm_metarl.tuning.config import MAX_TRIALS, Sweep, load_sweep, parse_sweep, read_sweep
from ssm_metarl.tuning.folder import SweepFolder, opened
from ssm_metarl.tuning.ledger import Ledger
from ssm_metarl.tuning.records import Point, SweepRecord, TrialRecord
from ssm_metarl.tuning.results import FILE, Report, TrialResults, parse_results, write_results
from ssm_metarl.tuning.rules import Asha, Curve, Median, decide, is_rung
from ssm_metarl.tuning.space import Range
from ssm_metarl.tuning.trainable import MetaTrainable, bundles

ROOT = Path(__file__).parents[2]
SPACE = {"inner.lr": {"loguniform": [0.01, 1.0]}, "outer.lr": {"choice": [0.001, 0.003, 0.01]}}
TINY = {
    "iterations": 4,
    "tasks_per_iteration": 2,
    "algorithm": "fomaml",
    "env": {"horizon": 6, "episodes_per_task": 2},
    "policy": {"hidden_dim": 4},
    "eval": {"every": 2, "num_tasks": 2, "num_steps": 2},
    "checkpoint": {"every": 3},
}


def make_sweep(folder, base=None, **values) -> Sweep:
    tree = {"space": SPACE, "num_trials": 4, **values}
    config = TrainConfig.model_validate({**TINY, **(base or {})}).override({"run.dir": str(folder), "run.name": "s"})
    return parse_sweep(tree, config, "mine.yaml")


def make_file(folder, **values) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"base": TINY, "space": SPACE, "num_trials": 4, **values}))
    return path


def report(iteration, post=-1.0, pre=-2.0, sha="ab"):
    return Report(iteration, pre, post, 10 * iteration, 0.5 * iteration, sha)


def complaint(folder, **values) -> str:
    with pytest.raises(ConfigError) as error:
        load_sweep(make_file(folder, **values), {})
    return str(error.value)


# ---- the file


@pytest.mark.parametrize("path", sorted((ROOT / "tune_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_sweeps_that_ship_are_right(path):
    sweep = load_sweep(path, {})
    assert sweep.name == path.stem and sweep.count >= 8
    assert read_sweep(sweep.dump().encode(), "again") == sweep


def test_a_sweep_is_read_written_and_read_again(tmp_path):
    path = make_file(tmp_path, scheduler={"median": {"grace_iterations": 2, "every": 2}}, metric="gain", seed=3)
    sweep = load_sweep(path, {"iterations": 6, "algorithm": "maml"})
    assert (
        sweep.name == "mine"
        and sweep.base.iterations == 6
        and sweep.base.outer.num_passes == 1
        and not sweep.base.inner.first_order
    )
    assert sweep.scheduler == Median(grace_iterations=2, every=2) and sweep.space == SPACE and sweep.count == 4
    again = read_sweep(sweep.dump().encode(), "sweep.yaml")
    assert again == sweep and again.identity() == sweep.identity()
    # The preset in the base still yields to a trial's own.
    assert again.base.override({"algorithm": "promp"}).outer.num_passes == 5


def test_base_may_be_a_file_beside_it(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(TINY))
    assert load_sweep(make_file(tmp_path, base="base.yaml"), {}).base.tasks_per_iteration == 2
    assert "no such file; did you mean base.yaml?" in complaint(tmp_path, base="bse.yaml")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("inner.lrr", {"uniform": [0.1, 1]}, ["inner.lrr is not a setting", "inner.lr"]),
        ("inner", {"uniform": [0.1, 1]}, ["inner is a section"]),
        ("inner.lr", {"loguniform": [1.0, 0.001]}, ["0 < low < high"]),
        ("inner.lr", {"loguniform": [0, 1]}, ["0 < low < high"]),
        ("inner.lr", {"uniform": [0.2, 0.2]}, ["low < high"]),
        ("inner.lr", {"uniform": [0.1]}, ["[low, high]"]),
        ("inner.lr", {"uniform": [0.1, ".inf"]}, ["[low, high]"]),
        ("inner.lr", {"uniform": 0.1}, ["[low, high]"]),
        ("inner.lr", {"uniform": [True, 2]}, ["[low, high]"]),
        ("inner.lr", {"uniform": [-1, 1]}, ["inner.lr = -1.0", "greater than 0"]),
        ("inner.lr", 0.1, ["= 0.1 must be a range", "belongs into base"]),
        ("inner.lr", [0.1, 1], ["must be a range"]),
        ("inner.lr", {"unifrm": [0.1, 1]}, ["did you mean uniform?"]),
        ("inner.lr", {"uniform": [0.1, 1], "choice": [1, 2]}, ["must be a range"]),
        ("inner.lr", {"choice": [0.1]}, ["at least two different"]),
        ("inner.lr", {"choice": [0.1, "0.1"]}, ["at least two different"]),
        ("inner.lr", {"choice": [0.1, "x"]}, ["inner.lr = 'x'"]),
        ("inner.num_steps", {"uniform": [1, 3]}, ["use int_uniform"]),
        ("inner.num_steps", {"int_uniform": [-1, 3]}, ["inner.num_steps = -1"]),
        ("inner.num_steps", {"int_uniform": [1, 10**400]}, ["[low, high], whole numbers"]),
        ("inner.num_steps", {"int_uniform": [0.5, 3]}, ["whole numbers"]),
        ("policy.core", {"uniform": [0, 1]}, ["one of ssm, lti, gru, mlp"]),
        ("seed", {"choice": [1, 2]}, ["seed cannot vary", "luck"]),
        ("iterations", {"choice": [10, 20]}, ["equal length"]),
        ("eval.num_tasks", {"choice": [10, 20]}, ["cannot vary"]),
        ("workers.num_workers", {"choice": [0, 1]}, ["cannot vary"]),
        ("env.vary.length", {"choice": [1, 2]}, ["different tasks"]),
        ("adapter.lr", {"uniform": [0.1, 1]}, ["training does not read it", "policy:"]),
    ],
    ids=str,
)
def test_a_wrong_space_is_named_with_its_cure(tmp_path, key, value, words):
    text = complaint(tmp_path, space={key: value})
    assert text.startswith(f"{tmp_path}/mine.yaml: space") and all(word in text for word in words), text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"space": {}}, ["space = {} must be a mapping"]),
        ({"space": None}, ["space = null must be a mapping"]),
        ({"metrc": "gain"}, ["metrc is not a setting; did you mean metric?"]),
        ({"metric": "gian"}, ["did you mean gain?"]),
        ({"inner": {"lr": 1}}, ["put it under base"]),
        ({"num_trials": None}, ["num_trials = null"]),
        ({"num_trials": MAX_TRIALS + 1}, ["10001 trials"]),
        ({"budget_s": 0}, ["budget_s = 0 must be a finite number"]),
        ({"search": "grid"}, ["space.inner.lr: a grid needs a choice"]),
        ({"scheduler": "ahsa"}, ["did you mean asha?"]),
        ({"scheduler": {"asha": {"grace_iterations": 0}}}, ["scheduler.asha: grace_iterations = 0"]),
        ({"scheduler": {"asha": {"reduction": 2}}}, ["did you mean reduction_factor?"]),
        ({"scheduler": {"asha": 3}}, ["scheduler = {'asha': 3}"]),
        ({"base": {"innr": {}}}, ["base: innr is not a setting"]),
        ({"base": [1]}, ["base = [1] must be a mapping"]),
        ({"base": {"iterations": 2}, "policy": "pretrained:navigation"}, ["did you mean navigation2d?"]),
        ({"policy": 3}, ["policy = 3"]),
        ({"policy": "pretrained:navigation2d"}, ["inner.lr cannot vary: the policy is trained"]),
        ({"policy": "pretrained:navigation2d", "space": {"adapter.lr": {"uniform": [0.1, 1]}}, "scheduler": "asha"},
         ["scheduler must be none"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_cure(tmp_path, values, words):
    text = complaint(tmp_path, **values)
    assert str(tmp_path / "mine.yaml") in text and all(word in text for word in words), text


def test_all_problems_come_at_once(tmp_path):
    text = complaint(tmp_path, base={"innr": 1}, space={"a": 1, "inner.lr": 2}, metrc=1, scheduler="x", num_trials=0)
    assert len(text.splitlines()) == 6


def test_wrong_files_end_the_command_with_status_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    path = str(make_file(tmp_path))
    for options, words in [
        (["--inner.lrr", "1"], ["command line: inner.lrr", "inner.lr"]),
        (["--run.dir", "file"], ["run.dir", "cannot be used"]),
        (["--run.dir", "/proc/none"], ["run.dir"]),
        (["--run.dir", "s3x://a/b"], ["run.dir = s3x://", "s3://"]),
        (["--run.name", "no/good"], ["run.name", "plain folder name"]),
        (["--env.id", "Cartpole-v1"], ["env.id", "CartPole-v1"]),
        (["--workers.num_workers", "5000"], ["5000 x 1 CPUs", "ask for fewer"]),
    ]:
        with pytest.raises(SystemExit) as ended:
            raise SystemExit(main(["tune", path, *options]))
        error = capsys.readouterr().err
        assert ended.value.code == 2 and all(word in error for word in words), error
        assert error.startswith("error: ") and error.count("\n") == 1


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
a_range = st.dictionaries(
    st.sampled_from(["uniform", "loguniform", "int_uniform", "choice"]),
    st.lists(st.floats() | st.integers() | st.text(max_size=3), max_size=3) | anything,
    max_size=2,
)
a_space = st.dictionaries(
    st.sampled_from(["inner.lr", "inner.num_steps", "policy.core", "algorithm", "adapter.parameters"]) | st.text(),
    a_range | anything,
    max_size=3,
)


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.sampled_from(["space", "metric", "scheduler", "search", "num_trials", "budget_s", "seed", "policy"]),
        a_space | anything,
        max_size=5,
    )
    | st.builds(lambda space: {"space": space, "num_trials": 3}, a_space)
)
def test_any_mapping_is_a_sweep_or_a_config_error(tree):
    try:
        sweep = parse_sweep(tree, TrainConfig().override({"run.name": "x"}), "any.yaml")
    except ConfigError as error:
        assert all(line.startswith("any.yaml: ") for line in str(error).splitlines())
    else:
        assert read_sweep(sweep.dump().encode(), "again").identity() == sweep.identity()
        if sweep.search == "random":
            sweep.base.override(propose.Random(sweep).propose(1))


# ---- settings of trials


def test_settings_are_a_function_of_seed_and_index(tmp_path):
    short, long = make_sweep(tmp_path), make_sweep(tmp_path, num_trials=9)
    first, second = ([propose.Random(it).propose(index) for index in range(4)] for it in (short, long))
    assert first == second and len({str(settings) for settings in first}) == 4
    assert first[0] == {"inner.lr": 0.1, "outer.lr": 0.003}, "trial 0 is the base"
    other = propose.Random(make_sweep(tmp_path, seed=1)).propose(1)
    assert other != first[1]


@pytest.mark.parametrize(
    ("it", "values"),
    [
        (Range("uniform", (0.2, 0.4)), (0.25, 0.3, 0.35)),
        (Range("loguniform", (0.001, 10.0)), (0.01, 0.1, 1.0)),
        (Range("int_uniform", (1, 4)), None),
        (Range("choice", ("a", None, [1])), None),
    ],
)
def test_draws_fill_their_range_evenly(it, values):
    rng = np.random.default_rng(0)
    drawn = [it.draw(rng) for _ in range(2000)]
    assert all(it.place(value) is not None for value in drawn)
    if values:
        np.testing.assert_allclose(np.quantile(drawn, [0.25, 0.5, 0.75]), values, rtol=0.15)
        assert all(value == float(f"{value:.4g}") for value in drawn)
    else:
        counts = [sum(value == it.at(place) for value in drawn) for place in {it.place(value) for value in drawn}]
        assert len(counts) == (4 if it.kind == "int_uniform" else 3) and min(counts) > 2000 / len(counts) * 0.85
    assert it.place("nothing") is None


def test_a_grid_has_every_combination_and_the_base_once(tmp_path):
    space = {"inner.lr": {"choice": [0.1, 0.3]}, "inner.num_steps": {"choice": [1, 2]}}
    it = make_sweep(tmp_path, space=space, search="grid", num_trials=None)
    grid = propose.make_proposer(it)
    found = [tuple(grid.propose(index).values()) for index in range(it.count)]
    assert found == [(0.1, 1), (0.1, 2), (0.3, 1), (0.3, 2)]
    outside = make_sweep(tmp_path, {"inner": {"lr": 0.2}}, space=space, search="grid", num_trials=None)
    assert outside.count == 5 and propose.make_proposer(outside).propose(0)["inner.lr"] == 0.2
    assert make_sweep(tmp_path, space=space, search="grid", num_trials=2).count == 2


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'search: optuna needs a package.*pip install "ssm-metarl\[optuna\]"'):
        propose.make_proposer(make_sweep(tmp_path, search="optuna"))


def test_optuna_learns_from_what_is_over(tmp_path):
    pytest.importorskip("optuna")
    space = {"inner.lr": {"loguniform": [0.001, 1.0]}, "policy.core": {"choice": ["ssm", "mlp"]}}
    it = make_sweep(tmp_path, space=space, search="optuna", num_trials=60)

    def score(settings):
        return -abs(np.log(settings["inner.lr"] / 0.03)) - (settings["policy.core"] == "mlp")

    first = propose.make_proposer(it)
    proposed = []
    for index in range(50):
        proposed.append(first.propose(index))
        state = "failed" if index == 3 else "stopped" if index == 4 else "finished"
        curve = (Point(4, -9.0, score(proposed[-1])),)
        first.learn(TrialRecord(index, proposed[-1], curve, state, "", 0, 0.0, ""))
    scores = [score(settings) for settings in proposed]
    assert np.mean(scores[30:]) > np.mean(scores[1:11]) + 0.3
    second = propose.make_proposer(it)  # A later process, told of the same.
    for index, settings in enumerate(proposed):
        second.learn(TrialRecord(index, settings, (Point(4, -9.0, score(settings)),), "finished", "", 0, 0.0, ""))
    assert np.mean([score(second.propose(index)) for index in range(50, 60)]) > np.mean(scores[1:11]) + 0.3


# ---- rules


def test_rungs_are_where_the_schedulers_say_at_the_next_report():
    asha = Asha(grace_iterations=3, reduction_factor=2)
    assert [it for it in range(2, 31, 2) if is_rung(asha, it, 2, 30)] == [4, 6, 12, 24]
    median = Median(grace_iterations=5, every=4)
    assert [it for it in range(2, 31, 2) if is_rung(median, it, 2, 30)] == [6, 10, 14, 18, 22, 26]
    assert [it for it in range(1, 13) if is_rung(Median(grace_iterations=5, every=3), it, 1, 12)] == [5, 8, 11]
    assert not is_rung(asha, 24, 2, 24), "at the end there is nothing to decide"
    assert not is_rung(None, 4, 2, 30)


def test_asha_keeps_the_best_share_of_those_seen_so_far():
    asha = Asha(grace_iterations=1, reduction_factor=3)
    scores = [0.0, 5.0, 3.0, 6.0, 4.0, 5.5, 1.0, 5.8]
    kept = [asha.keeps(1, Curve({1: score}), [Curve({1: it}) for it in scores[:n]]) for n, score in enumerate(scores)]
    # Of n seen, itself among them, the best max(1, n // 3) go on.
    assert kept == [True, True, False, True, False, True, False, True]
    assert asha.keeps(1, Curve({1: 5.0}), [Curve({1: 5.0})]), "equals go on"
    assert not asha.keeps(1, Curve({1: float("nan")}), [Curve({1: -1e9})])


def test_median_ends_whose_best_is_below_the_median_of_means():
    median = Median(grace_iterations=1, every=1)
    earlier = [Curve({1: 0.0, 2: 10.0}), Curve({1: 1.0, 2: 1.0}), Curve({1: 9.0, 2: 9.0})]  # means 5, 1, 9
    assert median.keeps(2, Curve({1: 0.0, 2: 5.0}), earlier)
    assert median.keeps(2, Curve({1: 6.0, 2: -50.0}), earlier), "its best counts"
    assert not median.keeps(2, Curve({1: 0.0, 2: 4.9}), earlier)
    assert median.keeps(2, Curve({1: 2.0, 2: 2.0}), earlier[:2]), "of two, the lower one"
    assert median.keeps(2, Curve({2: 0.0}), [])


def test_who_comes_to_a_rung_early_waits_for_earlier_trials():
    asha, own = Asha(), Curve({1: 1.0})
    assert decide(asha, 1, own, [Curve({})], [False]) == "wait"
    assert decide(asha, 1, own, [Curve({})], [True]) == "go", "it ended before it came here"
    assert decide(asha, 1, own, [Curve({1: 2.0})], [False]) == "stop"
    assert decide(asha, 3, Curve({1: 1.0, 3: 1.0}), [Curve({1: 2.0, 3: 0.5})], [True]) == "go"


# ---- books


class FakeFolder:
    """A sweep's folder in memory."""

    def __init__(self):
        self.files, self.cleared = {}, []

    def read(self, index):
        return self.files.get(index)

    def write(self, index, results):
        self.files[index] = results

    def clear(self, sweep, index):
        self.cleared.append(index)
        self.files.pop(index, None)


SCHEDULERS = st.sampled_from(
    [None, {"asha": {"grace_iterations": 1, "reduction_factor": 2}}, {"median": {"grace_iterations": 2, "every": 2}}]
)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), SCHEDULERS, st.integers(1, 4), st.integers(2, 7))
def test_the_end_of_a_sweep_does_not_depend_on_timing_nor_on_kills(data, scheduler, concurrent, count):
    """Workers of any speed, deaths and restarts at any time: the same trials go on, wait and stop."""
    base = {"iterations": 8, "eval": {"every": 2}}
    it = make_sweep("runs", base, scheduler=scheduler, num_trials=count)
    posts = np.random.default_rng(data.draw(st.integers(0, 1000))).normal(size=(count, 9))
    broken = data.draw(st.sampled_from([None, 0, 1]))

    def play(choose, lanes):
        folder, at_work, steps = FakeFolder(), [], 0
        ledger = Ledger(it, folder, print)
        while not ledger.is_done:
            steps += 1
            assert steps < 1000, "nobody could go on"
            while len(at_work) < lanes and (index := ledger.next()) is not None:
                ledger.begin(index)
                at_work.append(index)
            event = choose(len(at_work) + 1) if lanes > 1 else 0
            if event == len(at_work):  # The process is killed, and the sweep resumed.
                ledger, at_work = Ledger(it, folder, print), []
                continue
            index = at_work[event]
            reports = folder.files[index].reports
            at = len(reports) * 2 + 2
            if index == broken and at == 4:
                folder.write(index, replace(folder.files[index], failed="numbers"))
                ledger.fail(index, failed="numbers")
                goes_on = False
            else:
                reports = (*reports, report(at, float(posts[index, at])))
                folder.write(index, replace(folder.files[index], reports=reports))
                goes_on = ledger.report(index, reports)
            if not goes_on:
                ledger.leave(index)
                at_work.remove(index)
        return [(trial.state, trial.curve, trial.settings) for trial in ledger.record().trials], ledger.best

    calm = play(None, 1)
    wild = play(lambda n: data.draw(st.integers(0, n - 1)) if data.draw(st.integers(0, 3)) else 0, concurrent)
    assert wild == calm
    assert calm[0][0][0] == ("failed" if broken == 0 else "finished"), "the base is never ended early"


def test_the_ledger_reads_a_folder_and_begins_damaged_trials_again(tmp_path):
    it = make_sweep(tmp_path)
    with opened(it, resume=False) as folder:
        ledger = Ledger(it, folder, print)
        for index in range(3):
            assert ledger.next() == index
            ledger.begin(index)
            folder.write(index, replace(folder.read(index), reports=(report(2), report(4, post=-index))))
        path = tmp_path / "s" / "trials" / "001" / FILE
        path.write_bytes(path.read_bytes().replace(b"-1", b"-9", 1))
        (path.parent / "checkpoints" / "it-1").mkdir(parents=True)
    warnings = []
    with opened(it, resume=True) as folder:
        ledger = Ledger(it, folder, warnings.append)
        assert len(warnings) == 1 and "trial 001 begins again: results.json" in warnings[0]
        assert [trial.state for trial in ledger.record().trials] == ["finished", "finished"]
        assert ledger.best == 0 and ledger.next() == 1 and list(path.parent.iterdir()) == []
        ledger.begin(1)
        assert ledger.next() == 3 and [trial.state for trial in ledger.record().trials][1] == "running"
        ledger.fail(1, trouble="no disk")
        assert ledger.trial(1).state == "failed" and ledger.trial(1).cause == "no disk"
    with opened(it, resume=True) as folder:
        assert Ledger(it, folder, warnings.append).trial(1).state == "waiting", "another process may try again"


def test_results_round_trip_and_damage_is_found(tmp_path):
    folder = SweepFolder.at(str(tmp_path)).trial(0)
    folder.make()
    results = TrialResults({"inner.lr": 0.1, "adapter.parameters": ["*"]}, (report(2), report(4)), "why")
    write_results(folder, results)
    data = folder.read(FILE)
    assert parse_results(data) == results
    record = results.record(3, "finished", "")
    assert record.iterations == 4 and record.score("gain") == 1.0 and record.num_env_steps == 40
    assert np.isnan(TrialResults({}).record(0, "waiting", "").score("gain"))
    rng = np.random.default_rng(0)
    for position in rng.integers(len(data), size=60):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        with pytest.raises(ValueError, match=FILE):
            parse_results(bytes(damaged))
    for damaged in (b"", data[:-5], b"[]", b"{}", json.dumps({"format": 1}).encode()):
        with pytest.raises(ValueError, match=FILE):
            parse_results(damaged)


# ---- the folder


def test_a_sweep_that_exists_goes_on_only_if_asked_and_only_as_itself(tmp_path):
    it = make_sweep(tmp_path)

    def use(sweep=it, resume=True):
        with opened(sweep, resume) as folder:
            folder.write(0, TrialResults({}))
            return folder

    use(resume=False)
    with pytest.raises(ConfigError, match="exists; go on with it by --resume"):
        use(resume=False)
    use()
    use(make_sweep(tmp_path, {"workers": {"num_workers": 2}}, num_trials=9, budget_s=5, max_concurrent=1))
    for other, words in [
        (make_sweep(tmp_path, seed=1), "seed is 1, the existing sweep has 0"),
        (make_sweep(tmp_path, {"iterations": 6}), "base.iterations is 6, the existing sweep has 4"),
        (make_sweep(tmp_path, scheduler="asha"), "scheduler"),
        (make_sweep(tmp_path, space={"inner.lr": {"choice": [1, 2]}}), "space.inner.lr.choice"),
    ]:
        with pytest.raises(ConfigError, match=words):
            use(other)
    with locked(tmp_path / "s"), pytest.raises(ConfigError, match="another process"):
        use()
    (tmp_path / "s" / "sweep.yaml").write_text("base: [")
    with pytest.raises(ConfigError, match="not the file of a sweep"):
        use()


def test_a_sweep_that_could_not_begin_is_no_obstacle(tmp_path):
    for seed in (0, 1):
        with opened(make_sweep(tmp_path, seed=seed), resume=False):
            pass


def test_a_run_is_not_a_sweep(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "config.yaml").touch()
    with pytest.raises(ConfigError, match="is the folder of a run"), opened(make_sweep(tmp_path), resume=True):
        pass


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(tmp_path):
    (tmp_path / "s" / "trials" / "000" / FILE).mkdir(parents=True)
    (tmp_path / "s" / "trials" / "000").rename(tmp_path / "x")
    (tmp_path / "s" / "trials" / "000").touch()
    with pytest.raises(CheckpointError, match="make it readable"):
        Ledger(make_sweep(tmp_path), SweepFolder.of(make_sweep(tmp_path)), print)


def test_trials_are_runs_in_the_sweeps_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    it = make_sweep("here", {"workers": {"num_workers": "auto"}})
    folder = SweepFolder.of(it)
    config = folder.config(it, 7, {"inner.lr": 0.5})
    assert config.run.dir == str(tmp_path / "here" / "s" / "trials") and config.run.name == "007"
    assert config.inner.lr == 0.5 and config.workers.num_workers == 0 and config.checkpoint.dir is None
    elsewhere = make_sweep("here", {"checkpoint": {"dir": "memory://c"}})
    assert folder.config(elsewhere, 7, {}).checkpoint.dir == "memory://c/s/trials"


# ---- the work on a trial


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A trial without interruption: the sweep, its folder, its reports."""
    it = make_sweep(tmp_path_factory.mktemp("whole"))
    folder = SweepFolder.of(it)
    folder.write(1, TrialResults(propose.Random(it).propose(1)))
    work = trials.Training(it, folder, 1)
    for expected in (1, 2):
        assert len(work.advance()) == expected
    work.close()
    return it, folder, folder.read(1).reports


def copy_of(whole, tmp_path):
    it, folder, reports = whole
    shutil.copytree(folder.where, tmp_path / "s")
    it = it.model_copy(update={"base": it.base.override({"run.dir": str(tmp_path)})})
    return it, SweepFolder.of(it), reports


def same(reports):
    return [replace(it, seconds=0.0) for it in reports]


def test_a_trial_is_the_run_that_train_makes_of_its_settings(whole, tmp_path):
    it, folder, reports = whole
    assert [it.iteration for it in reports] == [2, 4] and reports[0].seconds < reports[1].seconds
    config = it.base.override({**folder.read(1).settings, "run.dir": str(tmp_path), "workers.num_workers": 0})
    summary = MetaTrainer(config).run()
    assert summary.params_sha256 == reports[-1].params_sha256
    path = Path(folder.trial(1).path())
    assert [record["params_sha256"] for record in read_metrics(path)] == [
        record["params_sha256"] for record in read_metrics(summary.folder)
    ]
    assert reports[-1].num_env_steps == read_metrics(path)[-1]["num_env_steps"]
    assert (path / "config.yaml").is_file() and len(list((path / "checkpoints").iterdir())) == 3


@pytest.mark.parametrize(
    ("kept", "checkpoints"),
    [
        pytest.param(0, 1, id="between a checkpoint and its report"),
        pytest.param(1, 2, id="after a checkpoint that is no report"),
        pytest.param(1, 3, id="before the last report"),
        pytest.param(2, 1, id="checkpoints lost"),
        pytest.param(0, 3, id="reports lost"),
    ],
)
def test_a_trial_goes_on_from_wherever_it_was_killed(whole, tmp_path, kept, checkpoints):
    it, folder, reports = copy_of(whole, tmp_path)
    folder.write(1, replace(folder.read(1), reports=reports[:kept]))
    path = Path(folder.trial(1).path())
    for checkpoint in sorted((path / "checkpoints").iterdir())[checkpoints:]:
        shutil.rmtree(checkpoint)
    work = trials.Training(it, folder, 1)
    while len(found := work.advance()) < 2:
        pass
    work.close()
    assert same(found) == same(reports) == same(folder.read(1).reports)
    assert [record["iteration"] for record in read_metrics(path)] == [0, 1, 2, 3], "each iteration stands once"


def test_a_trial_that_others_hold_is_waited_for(whole, tmp_path, monkeypatch):
    it, folder, _ = copy_of(whole, tmp_path)
    folder.write(1, replace(folder.read(1), reports=()))
    monkeypatch.setattr(trials, "LOCK_PATIENCE_S", 0.1)
    with locked(Path(folder.trial(1).path())), pytest.raises(ConfigError, match="another process"):
        trials.Training(it, folder, 1).advance()


def trainable(where, index=1):
    it = MetaTrainable.__new__(MetaTrainable)  # Tune's constructor makes folders in the user's home.
    it.config = {"sweep": where, "index": index, "num_workers": 0, "cpus_per_worker": 1.0}
    it.setup(it.config)
    return it


def test_the_trainable_says_why_it_cannot_go_on(whole, tmp_path, monkeypatch):
    it, folder, reports = copy_of(whole, tmp_path)
    assert "run.dir" in trainable(str(tmp_path / "elsewhere")).step()["fatal"]
    folder.storage.write("sweep.yaml", it.dump().encode())
    folder.write(1, replace(folder.read(1), reports=reports[:1]))

    def broken(self, pool, until):
        raise error

    monkeypatch.setattr(MetaTrainer, "train", broken)
    for error, where in [
        (TaskError("the meta-gradient is not finite\nTraceback"), "failed"),
        (RuntimeError("The total norm is non-finite"), "failed"),
        (CheckpointError("the disk is full"), "trouble"),
        (OSError("gone"), "trouble"),
    ]:
        worker = trainable(folder.where)
        said = worker.step()
        assert said[where] == str(error).splitlines()[0] and not said["reports"]
        assert folder.read(1).failed == (said["failed"] or folder.read(1).failed)
        assert worker._work is None, "the trial is free for others"
    error = ZeroDivisionError("a mistake of ours")
    with pytest.raises(ZeroDivisionError):
        trainable(folder.where).step()


def test_the_trainable_lets_go_of_a_trial_at_rungs_and_at_the_end(whole, tmp_path):
    it, folder, reports = copy_of(whole, tmp_path)
    it = it.model_copy(update={"scheduler": Asha(grace_iterations=2)})
    folder.storage.write("sweep.yaml", it.dump().encode())
    folder.clear(it, 1)
    folder.write(1, TrialResults(propose.Random(it).propose(1)))
    worker = trainable(folder.where)
    for _ in range(2):
        said = worker.step()
        with locked(Path(folder.trial(1).path())):
            pass
    assert same(Report(**report) for report in said["reports"]) == same(reports)
    assert worker.reset_config({}) is True


def test_a_call_that_hangs_ends_the_process():
    """It is tried in a process of its own: nothing else ends a call in this one."""
    import subprocess
    import sys

    code = (
        "import time\nfrom ssm_metarl.tuning.trials import _Watched\n"
        "class Pool:\n    def map(self):\n        yield 1\n        time.sleep(60)\n"
        "for it in _Watched(Pool(), 0.3).map(): print(it, flush=True); time.sleep(0.6)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1 and found.stdout == "1\n" and "Timeout" in found.stderr


def test_an_adapter_trial_is_the_evaluation_of_its_settings(tmp_path):
    base = {**TINY, "eval": {"num_tasks": 3, "num_steps": 2}}
    path = make_file(
        tmp_path,
        base=base | {"run": {"dir": str(tmp_path)}, "policy": {}},
        policy="pretrained:navigation2d",
        space={"adapter.strategy": {"choice": ["meta", "online", "none"]}, "adapter.lr": {"uniform": [0.01, 0.2]}},
    )
    it = load_sweep(path, {"env.episodes_per_task": 3})
    assert it.base.policy.hidden_dim == 32 and it.base.env.horizon == 6 and it.iterations == 2
    assert it.base.run.dir == str(tmp_path)
    folder = SweepFolder.of(it)
    for index, settings in enumerate([{"adapter.strategy": "none"}, {"adapter.lr": 0.2}, {"adapter.lr": 0.1}, {}]):
        folder.write(index, TrialResults(settings))
    found = [trials.make_work(it, folder, index).advance() for index in range(4)]
    assert [report.iteration for report in found[0]] == [1, 2] and found[0] == folder.read(0).reports
    assert len({report.pre for reports in found for report in reports}) == 1, "the same noise for all"
    assert found[1][-1].post != found[2][-1].post, "settings matter"
    assert same(found[2]) == same(found[3]), "null is inner.lr = 0.1"


# ---- what comes out


def make_record():
    def settings(inner_lr, adapter_lr=0.1):
        return {"inner.lr": inner_lr, "adapter.lr": adapter_lr}

    records = (
        TrialRecord(0, settings(0.1, None), (Point(2, -5, -4), Point(4, -4, -3)), "finished", "", 40, 1.23456, "aa"),
        TrialRecord(1, settings(0.5), (Point(2, -5, -9),), "stopped", "", 20, 1.0, "bb"),
        TrialRecord(2, settings(0.7), (), "failed", 'a, "b"\nc', 0, 0.0, ""),
        TrialRecord(3, settings(0.2), (Point(2, -5, -4), Point(4, -4, -2)), "finished", "", 40, 1.0, "cc"),
        TrialRecord(4, settings(0.3), (), "running", "", 0, 0.0, ""),
    )
    return SweepRecord("s", {"inner.lr": {}, "adapter.lr": {}}, "post_adaptation", 4, records, 3, "")


def test_the_csv_has_a_row_per_trial():
    rows = list(csv.DictReader(io.StringIO(table.to_csv(make_record()))))
    assert [row["trial"] for row in rows] == ["000", "001", "002", "003", "004"]
    assert rows[0] == {
        "trial": "000", "state": "finished", "iterations": "4", "num_env_steps": "40", "pre": "-4", "post": "-3",
        "seconds": "1.235", "params_sha256": "aa", "inner.lr": "0.1", "adapter.lr": "null", "cause": "",
    }  # fmt: skip
    assert rows[2]["cause"] == 'a, "b"\nc' and rows[2]["post"] == ""


def test_the_table_has_five_columns_and_the_best_first():
    record = make_record()
    assert [trial.index for trial in table.ranked(record)] == [3, 0, 1, 2, 4]
    head, first, *_ = table.table(record, table.ranked(record))
    assert head.split("  ")[0] == "trial" and len(table.COLUMNS) == 5
    assert " ".join(first.split()) == "003 inner.lr 0.2, adapter.lr 0.1 4/4 -4.00 -> -2.00 finished"
    assert len(table.settings_text({"adapter.parameters": ["x" * 90]})) == 60


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_a_line_per_trial_that_is_over():
    out = io.StringIO()
    display = table.Display(out)
    for _ in range(2):
        display.update(make_record())
    assert out.getvalue().count("\n") == 4 and out.getvalue().startswith("trial 000  inner.lr 0.1")


def test_on_a_terminal_the_table_is_redrawn_and_leaves_nothing(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("LINES", "6")
    out = Terminal()
    display = table.Display(out)
    display.update(make_record())
    first = out.getvalue()
    assert first.count("\n") == 4 and "\n004" in first and "\n003" in first, "what runs, and the best"
    assert all(len(line) < 50 for line in first.splitlines())
    display.update(make_record())
    assert out.getvalue() == first, "nothing has changed"
    display.end()
    assert out.getvalue() == first + "\x1b[4A\x1b[J"


def test_best_yaml_is_a_configuration_that_trains_the_same(whole):
    it, folder, reports = whole
    text = sweep._best_yaml(it, folder, folder.read(1).record(1, "finished", ""))
    path = Path(folder.where) / "best.yaml"
    path.write_text(text)
    config = load_config(path)
    settings = folder.read(1).settings
    assert config.run.name is None and config.run.dir == it.base.run.dir and config.workers == it.base.workers
    assert config.identity() == it.base.override(settings).identity() and config.iterations == it.base.iterations
    assert text.startswith("# trial 001 of the sweep ") and reports[-1].params_sha256 in text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.5, 2, "beat the defaults by 1.00"), (-1, 3, "NOT beat the defaults beyond chance"), (-3, -1, "they are worse")],
)
def test_the_verdict_is_plain(tmp_path, low, high, words):
    assert words in compare.verdict(make_sweep(tmp_path), Interval(1.0, low, high))


def test_the_comparison_is_paired_and_says_what_differs(whole, monkeypatch):
    it, folder, reports = whole
    record = folder.read(1).record(1, "finished", "")
    base = replace(record, index=0, num_env_steps=record.num_env_steps * 2)
    text = compare.compare(it, folder, SweepRecord("s", it.space, it.metric, 4, (record, base), 0, ""))
    assert text == "The defaults, trial 000, are the best that was found."
    tasks = np.arange(5.0)
    ours, theirs = compare.Measured("best", tasks, tasks + 2), compare.Measured("base", tasks, tasks + 1)
    text = compare.describe(it, [ours, theirs], [record, base])
    assert "NOT equal" in text and "beat the defaults by 1.00" in text and "1.00 [1.00, 1.00]" in text
    with pytest.raises(CheckpointError, match="does not have the parameters"):
        compare._final(it, folder, replace(record, params_sha256="other"))
    assert compare._final(it, folder, record)[0].run.name == "001"
    assert len(reports) == 2


# ---- resources


def test_trials_fit_where_their_workers_do(tmp_path):
    def fit(nodes, num_workers=0, cpus=1.0, count=50):
        workers = {"num_workers": num_workers, "cpus_per_worker": cpus}
        return search.most_at_once(make_sweep(tmp_path, {"workers": workers}, num_trials=count), nodes)

    assert bundles(0, 0.5) == [{"CPU": 0.5}] and bundles(3, 1.0) == [{"CPU": 1.0}] * 3
    assert fit([2.0]) == 2 and fit([2.0], cpus=0.5) == 4 and fit([2.0], cpus=0.1) == 20
    assert fit([2.0], num_workers=2) == 1 and fit([2.0, 3.0], num_workers=2) == 2 and fit([2.0], num_workers=3) == 0
    assert fit([2.0] * 9, cpus=3.0) == 0, "a worker fits on one machine or nowhere"
    assert fit([2.0], count=1) == 1 and fit([]) == 0
