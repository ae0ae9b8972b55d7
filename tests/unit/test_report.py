"""The report: what it shows are the numbers of the files, and it is one page that asks for nothing."""

import itertools
import json
import re
import shlex
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ssm_metarl.cli import Train, main
from ssm_metarl.config import ConfigError, dump_yaml, load_config
from ssm_metarl.evaluation.curves import Curves
from ssm_metarl.evaluation.report import render, run_files, write_report
from ssm_metarl.evaluation.report.groups import make_groups, smooth
from ssm_metarl.evaluation.report.pictures import keep_apart, ticks
from ssm_metarl.evaluation.report.run_files import changed, flat, read_run, repeat_command
from ssm_metarl.evaluation.report.wording import interval, number, seconds
from ssm_metarl.evaluation.statistics import Interval, bootstrap_mean
from ssm_metarl.options import parse

TASKS, STEPS, ITERATIONS = 8, 3, 12
VOID = {"meta", "link", "br"}
TIMES = {"rollout_s": 1.2, "gradient_s": 0.6, "outer_s": 0.1, "waiting_s": 0.2}


class Page(HTMLParser):
    """A parsed page: its words, its tags and their attributes. Fails where a tag is not closed."""

    def __init__(self, html):
        super().__init__()
        self.html, self.words, self.tags, self.open = html, [], [], []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def pictures(self):
        """Figure titles -> the SVG in them, parsed as XML; None for a figure without one."""
        found = {}
        for figure in re.findall(r"<figure.*?</figure>", self.html, re.DOTALL):
            title = re.search(r"<h3>(.*?)</h3>", figure).group(1)
            svg = re.search(r"<svg.*</svg>", figure, re.DOTALL)
            found[title] = ElementTree.fromstring(svg.group()) if svg else None
        return found


def page_of(path):
    """Reads a report and checks what holds for every report."""
    page = Page(path.read_text(encoding="utf-8"))
    assert not {"script", "img", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page.html))
    assert not re.search(r"url\(|@import|\bon\w+=", page.html)
    for _, attributes in page.tags:
        assert attributes.get("href", "#")[:5] in ("#", "data:") and "src" not in attributes
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert not re.search(r"\b(nan|inf|None|NaN)\b", re.sub(r"None:|default null", "", page.html))
    assert "prefers-color-scheme: dark" in page.html
    for svg in page.pictures.values():
        assert svg is None or svg[0].tag.rpartition("}")[2] == "title"
    return page


def make_run(folder, iterations=ITERATIONS, evaluated=True, timed=True, faults=(), **settings):
    """A run's folder as training leaves it, with made-up numbers."""
    folder.mkdir(parents=True)
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    config = load_config(None, {"iterations": ITERATIONS, "workers.num_workers": 2, **dotted})
    rng = np.random.default_rng(config.seed)
    (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    lines = [
        {
            "iteration": index,
            "return_pre_adaptation": -50.0 + index + rng.normal(),
            "return_post_adaptation": -50.0 + 3 * index + rng.normal(),
            "num_env_steps": 1000 * (index + 1),
            "iteration_s": 1.0,
            "workers": 2,
            **{name: 0 for name in ("respawns", "retries", "recollections", "failed_saves")},
            **(TIMES if timed else {}),
            "params_sha256": f"{config.seed:064x}",
        }
        for index in range(iterations)
    ]
    for name in faults:
        lines[0][name] += 1
    write_lines(folder / "metrics.jsonl", lines)
    means = {"event": "evaluation", "iteration": 10, "pre": -48.0, "post": -20.0}
    write_lines(folder / "events.jsonl", [means, {"event": "respawn", "cause": "worker died"}] if faults else [means])
    if evaluated:
        write_json(folder / "eval.json", evaluation_of(config, rng))
    return folder


def evaluation_of(config, rng):
    before = np.linspace(-60.0, -20.0, TASKS) + rng.normal(0, 2.0, TASKS)
    adapted = [np.full(TASKS, gain) + rng.normal(0, 2.0, TASKS) for gain in (25.0, 27.0, 28.0)]
    returns = {
        "none": np.repeat(before[:, None], STEPS + 1, axis=1),
        "online": before[:, None] + np.array([0.0, 2.0, 4.0, 6.0]),
        "meta": np.stack([before, *(before + gain for gain in adapted)], axis=1),
    }
    tasks = [{"goal_x": 0.1 * index, "goal_y": -0.2} for index in range(TASKS)]
    curves = Curves(config.env.id, "test", 10, tasks, {name: array[None] for name, array in returns.items()})
    return {
        "env": config.env.id,
        "split": "test",
        "seed": config.seed,
        "episodes_per_task": 10,
        "inner": config.inner.model_dump(mode="json"),
        "adapter": config.adapter.model_dump(mode="json"),
        "tasks": tasks,
        "params_sha256": f"{config.seed:064x}",
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "interval": curves.interval,
        "strategies": {
            name: {
                "returns": array.tolist(),
                "mean": [estimate._asdict() for estimate in curves.mean(name)],
                "iqm": [estimate._asdict() for estimate in curves.iqm(name)],
                "success": None,
            }
            for name, array in returns.items()
        },
    }


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_json(path, tree):
    path.write_text(json.dumps(tree), encoding="utf-8")


def test_a_real_run_ends_with_its_report(tmp_path, capsys):
    words = "--iterations 2 --tasks_per_iteration 2 --env.horizon 6 --env.episodes_per_task 3 --policy.hidden_dim 4"
    words += f" --eval.num_tasks 3 --workers.num_workers 0 --run.name a --run.dir {tmp_path}"
    assert main(["train", *words.split()]) == 0
    *_, mention, done = capsys.readouterr().out.splitlines()
    path = tmp_path / "a" / "report.html"
    assert mention == f"report: {path}" and done.startswith("done: ")
    page = page_of(path)
    evaluation = json.loads((tmp_path / "a" / "eval.json").read_text())
    returns = np.array(evaluation["strategies"]["meta"]["returns"])
    gain = interval(bootstrap_mean(returns[:, 1] - returns[:, 0]), sign=True)
    assert gain[0] in page.text and gain[1] in page.text
    for name, result in evaluation["strategies"].items():
        assert name in page.text
        for estimate in result["mean"]:
            assert " ".join(interval(Interval(**estimate))) in page.text
    [*_, line] = run_files.read_run(tmp_path / "a").records
    assert line["params_sha256"] in page.text and evaluation["versions"]["torch"] in page.text
    assert all(svg is not None for svg in page.pictures.values())
    assert list(page.pictures) == [
        "Return over training",
        "Return after k adaptation steps",
        "Each held-out task",
        "Paths on held-out tasks",
        "Where the time of an iteration went",
    ]
    assert main(["report", "a", "--run.dir", str(tmp_path), "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == path.read_text(), "nothing in it depends on the time"


def test_one_run(tmp_path):
    folder = make_run(tmp_path / "a<i>&'\"", faults=["respawns", "retries"], inner__lr=0.2, seed=3)
    page = page_of(write_report([folder]))
    assert "a<i>&'\"" in page.text and "<i>" not in page.html
    assert "12 of 12 iterations" in page.text and "12,000 environment steps" in page.text
    assert "12 s of training" in page.text and f"{TASKS} of {TASKS} held-out tasks improved" in page.text
    assert "1 worker replaced and 1 call tried again." in page.text and "worker died" in page.text
    assert re.search(r"inner.lr\s+0.2\s+0.1\s+Step size of an inner gradient step.", page.text)
    assert f"{3:064x}" in page.text and "2.13.0" in page.text
    # Of 1 s with two workers: 1.2 / 2, 0.6 / 2 and 0.1 s, of which the outer step had all.
    labels = ["rollout 60 %", "gradient 30 %", "outer step 10 %", "waiting 0 %"]
    assert all(label in page.text for label in labels)


def test_the_start_of_the_workers_does_not_hide_the_other_iterations(tmp_path):
    folder = make_run(tmp_path / "a")
    first, *lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    write_lines(folder / "metrics.jsonl", [{**first, "waiting_s": 20.0}, *lines])
    page = page_of(write_report([folder]))
    assert "An iteration took 1.0 s (median). 1 iteration took 11 s (the workers start in the first)" in page.text
    assert "rollout 60 %" in page.text


def test_runs_that_differ_by_their_seed_are_joined(tmp_path):
    folders = [make_run(tmp_path / f"s{seed}", seed=seed) for seed in range(3)]
    page = page_of(write_report(folders, tmp_path / "all.html"))
    returns = np.array(
        [json.loads((f / "eval.json").read_text())["strategies"]["meta"]["returns"] for f in folders], np.float64
    )
    gain = interval(bootstrap_mean(returns[:, :, 1] - returns[:, :, 0]), sign=True)
    assert f"{gain[0]} gained, 95 % interval {gain[1]}" in page.text
    assert " ".join(interval(bootstrap_mean(returns[:, :, 2]))) in page.text
    assert "hierarchical bootstrap over 3 runs" in page.text and "3 seeds" in page.text
    assert page.text.count("ssm-metarl train") == 3


def test_different_configurations_stand_side_by_side(tmp_path):
    folders = [make_run(tmp_path / f"a{seed}", seed=seed) for seed in range(2)]
    folders += [make_run(tmp_path / "b", inner__lr=0.2), make_run(tmp_path / "c", evaluated=False, inner__lr=0.3)]
    page = page_of(write_report(folders, tmp_path / "all.html"))
    assert re.search(r"inner.lr gained \(95 %\) before after seeds", page.text)
    assert "lr 0.1" in page.text and "lr 0.2" in page.text and "not evaluated" in page.text
    assert {"Return after k steps, strategy meta", "Gain on each held-out task"} <= page.pictures.keys()
    other = make_run(tmp_path / "cartpole", **{"env__id": "ssm_metarl/CartPole-v0"})
    page = page_of(write_report([*folders, other], tmp_path / "all.html"))
    assert "ssm_metarl/Navigation2D-v0" in page.text and "ssm_metarl/CartPole-v0" in page.text


def test_what_cannot_be_joined_is_left_out_and_said(tmp_path):
    folders = [make_run(tmp_path / f"s{seed}", seed=seed) for seed in range(2)]
    folders.append(make_run(tmp_path / "twin", seed=1))
    evaluation = json.loads((folders[1] / "eval.json").read_text())
    write_json(folders[1] / "eval.json", {**evaluation, "split": "validation"})
    page = page_of(write_report(folders, tmp_path / "all.html"))
    assert "twin is left out: s1 has the same configuration and seed." in page.text
    assert "The evaluation of s1 is left out" in page.text and "split: test and validation" in page.text
    assert "over the tasks of one run" in page.text


def test_a_run_that_is_not_finished(tmp_path):
    folder = make_run(tmp_path / "half", iterations=5, evaluated=False, timed=False)
    page = page_of(write_report([folder]))
    assert "5 of 12 iterations are done." in page.text
    assert f"ssm-metarl evaluate {folder}" in page.text
    pictures = page.pictures
    assert pictures["Return over training"] is not None
    assert pictures["Return after k adaptation steps"] is None
    assert pictures["Where the time of an iteration went"] is None and "an older version" in page.text


def test_a_run_that_has_hardly_begun(tmp_path):
    folder = make_run(tmp_path / "new", iterations=0, evaluated=False)
    for name in ("metrics.jsonl", "events.jsonl"):
        (folder / name).unlink()
    page = page_of(write_report([folder]))
    assert "0 of 12 iterations are done." in page.text and "No iteration is done yet." in page.text
    folder = make_run(tmp_path / "one", iterations=1, evaluated=False)
    assert "1 of 12 iterations are done." in page_of(write_report([folder])).text


def test_numbers_that_are_none_and_damaged_files(tmp_path):
    folder = make_run(tmp_path / "a")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[3])
    lines[3] = json.dumps({**record, "return_post_adaptation": float("nan"), "num_env_steps": float("inf")})
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"iteration": 12, "ret']), encoding="utf-8")
    evaluation = json.loads((folder / "eval.json").read_text())
    evaluation["strategies"]["meta"]["returns"][0][0] = float("nan")
    write_json(folder / "eval.json", evaluation)
    page = page_of(write_report([folder]))
    assert "eval.json cannot be used (ValueError: a return is not a finite number)" in page.text
    for damaged in ("", "[]", "{}", '{"strategies": {"meta": 3}}', json.dumps({**evaluation, "strategies": {}})):
        (folder / "eval.json").write_text(damaged, encoding="utf-8")
        assert "eval.json cannot be used" in page_of(write_report([folder])).text


def test_without_an_inner_loop_nothing_is_said_to_be_gained(tmp_path):
    page = page_of(write_report([make_run(tmp_path / "a", inner__num_steps=0)]))
    assert "takes no gradient steps to adapt" in page.text and "gained" not in page.text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
fields = st.sampled_from(
    ["iteration", "num_env_steps", "return_pre_adaptation", "iteration_s", "rollout_s", "workers", "respawns", "event"]
)


parts = st.sampled_from(
    ["env", "split", "tasks", "versions", "params_sha256", "episodes_per_task", "inner", "adapter", "strategies"]
)


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(lines=st.lists(st.dictionaries(fields, json_values), max_size=3), part=parts, junk=json_values)
def test_no_content_of_the_files_breaks_the_page(tmp_path_factory, lines, part, junk):
    folder = make_run(tmp_path_factory.mktemp("runs") / "a", iterations=3)
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    more = [{"iteration": 3 + index, **line} for index, line in enumerate(lines)]
    write_lines(folder / "metrics.jsonl", [*kept, *more, junk])
    write_lines(folder / "events.jsonl", [*lines, {"event": "evaluation", "iteration": junk}, junk])
    evaluation = json.loads((folder / "eval.json").read_text())
    for damaged in (
        {**evaluation, part: junk},
        {**evaluation, "strategies": {**evaluation["strategies"], "meta": junk}},
    ):
        write_json(folder / "eval.json", damaged)
        page, _ = render([read_run(folder)])
        Page(page)
        assert not re.search(r'="[^"]*\bnan\b', page)


def test_the_command_repeats_the_run(tmp_path):
    config = load_config(
        None,
        {
            "algorithm": "maml",
            "env.id": "CartPole-v1",
            "env.vary": {"length": {"uniform": [0.3, 1.0]}, "odd name": {"choice": [1, 2]}},
            "policy.inputs": ["observation", "previous_reward"],
            "inner.first_order": True,
            "outer.lr": 1e-05,
            "outer.num_passes": 2,
            "adapter.parameters": ["*.weight"],
            "checkpoint.dir": "/tmp/with space",
            "workers.num_workers": 0,
            "run.name": "x",
        },
    )
    command = repeat_command(config)
    program, name, *words = shlex.split(command.replace("\\\n", ""))
    arguments, overrides = parse(Train, words, "train")
    assert (program, name, arguments.config) == ("ssm-metarl", "train", None)
    again = flat(load_config(None, overrides))
    assert {**again, "run.name": "x"} == flat(config)
    assert "outer.rule" not in command, "what the preset sets need not be said"
    assert set(changed(load_config())) == set()


def test_charts_as_files(tmp_path, capsys):
    folder = make_run(tmp_path / "a")
    assert main(["report", str(folder), "--pictures", str(tmp_path / "pictures")]) == 0
    paths = [tmp_path / "pictures" / f"{name}.svg" for name in ("learning", "adaptation", "tasks", "time")]
    assert capsys.readouterr().out.splitlines()[1:] == [str(path) for path in paths]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert "prefers-color-scheme" in text and ElementTree.fromstring(text).tag.endswith("svg")


@pytest.mark.parametrize(
    "svg",
    [
        "<svg><script>1</script></svg>",
        '<svg onload="x()"/>',
        '<svg><a href="javascript:x"/></svg>',
        "<svg><foreignObject/></svg>",
        "<p/>",
        "<svg>",
    ],
)
def test_an_extra_picture_must_be_a_drawing(tmp_path, svg):
    run = read_run(make_run(tmp_path / "a"))
    with pytest.raises(ValueError, match="an extra picture"):
        render([run], [("title", svg)])
    page, _ = render([run], [("paths <1>", '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>')])
    assert Page(page).pictures["paths &lt;1&gt;"].tag.endswith("svg") and "<?xml" not in page


def test_wrong_commands(tmp_path, capsys):
    folder = str(make_run(tmp_path / "a"))
    for words, message in [
        ([str(tmp_path)], "config.yaml"),
        ([folder, folder], "named twice"),
        ([folder, "--eval.num_tasks", "3"], "takes no --eval.num_tasks"),
        ([folder, "--inner.lrr", "3"], "inner.lr"),
    ]:
        with pytest.raises(SystemExit) as stop:
            main(["report", *words])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_no_failure_of_the_training(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssm_metarl.evaluation.report.write_report", full)
    words = "--iterations 1 --tasks_per_iteration 2 --env.horizon 4 --env.episodes_per_task 2 --policy.hidden_dim 4"
    words += f" --eval.num_tasks 2 --workers.num_workers 0 --run.name a --run.dir {tmp_path}"
    assert main(["train", *words.split()]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("done: ") and "No space left" in err and "ssm-metarl report" in err


@pytest.mark.parametrize(
    ("value", "width", "text"),
    [
        (-12.3456, 0.8, "\u221212.35"),
        (-12.3456, 8.0, "\u221212.3"),
        (1234.5, None, "1,234"),
        (0.0123456, None, "0.0123"),
        (-0.001, 1.0, "0.0"),
        (0.0, 0.0, "0"),
        (float("nan"), None, "\u2013"),
        (1e300, None, "1.00e+300"),
    ],
)
def test_numbers_have_the_digits_that_mean_something(value, width, text):
    assert number(value, width) == text


def test_intervals_and_durations():
    assert interval(Interval(28.04, 23.47, 32.4), sign=True) == ("+28.0", "[+23.5, +32.4]")
    assert interval(Interval(1.5, 1.5, 1.5)) == ("1.50", "[1.50, 1.50]")
    assert [seconds(amount) for amount in (0.456, 60, 600, 36000)] == ["0.46 s", "60 s", "10.0 min", "10.0 h"]


@given(low=st.floats(-1e9, 1e9), width=st.floats(1e-3, 1e9))
def test_ticks_are_round_few_and_inside(low, width):
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 5
    assert all(low - 1e-6 * width <= tick <= low + width + 1e-6 * width for tick in found)


def test_labels_keep_clear_of_each_other():
    places = keep_apart([10.0, 11.0, 95.0, 99.0], 17.0, 0.0, 100.0)
    assert all(after - before >= 17.0 for before, after in itertools.pairwise(places))
    assert max(places) <= 100.0
    assert keep_apart([10.0, 50.0], 17.0, 0.0, 100.0) == [10.0, 50.0]


def test_smoothing_keeps_to_the_values():
    values_NR = np.arange(20.0)[:, None]
    curve = smooth(values_NR, 3)
    assert curve.mean[10] == 10.0 and (curve.low[10], curve.high[10]) == (9.0, 11.0)
    assert (curve.low <= curve.mean).all() and (curve.mean <= curve.high).all()


def test_groups_keep_the_order_of_the_runs(tmp_path):
    runs = [read_run(make_run(tmp_path / name, inner__lr=lr)) for name, lr in (("b", 0.3), ("a", 0.1))]
    assert [group.runs[0].name for group in make_groups(runs)] == ["b", "a"]


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_run(tmp_path)
