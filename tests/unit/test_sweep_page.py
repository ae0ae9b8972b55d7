"""The page of a sweep: its pictures show the numbers of the records, whatever those are, and it asks for nothing."""

import itertools
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import Page, page_of

from ssm_metarl.evaluation.report.pictures import Picture
from ssm_metarl.tuning import charts
from ssm_metarl.tuning.axes import Axis, log_ticks, score_range
from ssm_metarl.tuning.page import MOST_DRAWN, render, verdict
from ssm_metarl.tuning.records import STATES, Point, SweepRecord, TrialRecord

LR = {"inner.lr": {"loguniform": [0.001, 1.0]}}
SPACE = {**LR, "policy.core": {"choice": ["ssm", "gru", "<b>"]}, "advantage.discount": {"uniform": [0.9, 1.0]}}
STYLE = Path(charts.__file__).with_name("sweep.css")


def trial(index, post, /, state="finished", iterations=10, cause="", **values):
    """A trial with three points on a straight line to ``post``; ``inner__lr=0.1`` is a setting."""
    chosen = {key.replace("__", "."): value for key, value in values.items()}
    curve = tuple(
        Point(at, -50.0 + at / 10, -50.0 + (post + 50.0) * at / iterations) for at in (0, iterations / 2, iterations)
    )
    return TrialRecord(index, chosen, curve, state, cause, 1000 * iterations, 2.5, "ab")


def sweep(*trials, space=LR, best=None, **changed):
    fields = {"name": "quick", "metric": "post_adaptation", "iterations": 10, "comparison": "", **changed}
    return SweepRecord(space=space, trials=trials, best=best, **fields)


def page_for(record):
    page = Page(render(record))
    assert not re.search(r'="[^"]*\b(nan|inf)\b', page.html)
    return page


def hinted(svg, tag):
    """[(hint, element)] of the shapes of a kind, in the order in which they are drawn."""
    groups = [element for element in svg.iter() if element.tag.endswith("}g")]
    return [(group[0].text, group[1]) for group in groups if group[1].tag.endswith(f"}}{tag}")]


def lines(page, title):
    """Trial number -> the points of its line."""
    found = {}
    for hint, path in hinted(page.pictures[title], "path"):
        numbers = [float(word) for word in re.findall(r"-?[\d.]+", path.get("d"))]
        found[int(re.match(r"trial (\d+)", hint).group(1))] = list(zip(numbers[::2], numbers[1::2], strict=True))
    return found


def dots(page, title):
    """Trial number -> (x, y) of its dot."""
    return {
        int(re.match(r"trial (\d+)", hint).group(1)): (float(dot.get("cx")), float(dot.get("cy")))
        for hint, dot in hinted(page.pictures[title], "circle")
    }


def test_the_page_in_its_order(tmp_path):
    record = sweep(
        trial(0, -20.0, inner__lr=0.1, policy__core="ssm", advantage__discount=0.99),
        trial(1, -12.0, inner__lr=0.3, policy__core="<b>", advantage__discount=0.95),
        trial(2, -30.0, "stopped", 4, inner__lr=0.01, policy__core="gru", advantage__discount=0.9),
        trial(3, -30.0, "failed", 4, "worker <i>died</i>", inner__lr=0.9, policy__core="gru", advantage__discount=1.0),
        TrialRecord(4, {}, (), "waiting", "", 0, 0.0, ""),
        space=SPACE,
        best=1,
        comparison="base  -20\nbest  -12",
    )
    (tmp_path / "report.html").write_text(render(record), encoding="utf-8")
    page = page_of(tmp_path / "report.html")
    assert [*page.pictures] == [
        "Parallel coordinates",
        "inner.lr",
        "policy.core",
        "advantage.discount",
        "Learning curves",
    ]
    places = [
        page.text.index(words)
        for words in (
            "The best is trial 001 (inner.lr 0.3, policy.core <b>, advantage.discount 0.95): a return of −49.0 before",
            "base -20 best -12",
            "Parallel coordinates",
            "001 −49.0 −12.0 +37.0 finished",
            "002 −49.6 −30.0 +19.6 stopped at 4",
            "trial 003 worker <i>died</i>",
        )
    ]
    assert places == sorted(places) and "<b>" not in re.sub(r"<b>[\d.,]+( s)?</b>|<b>trial 003</b>", "", page.html)
    assert lines(page, "Parallel coordinates").keys() == {0, 1, 2, 3}, "one that waits has no line"
    assert all(dots(page, name).keys() == {0, 1, 2} for name in SPACE), "one that failed has no score"
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_positions_are_those_of_the_values():
    record = sweep(*(trial(index, -30.0 + 3 * index, inner__lr=10.0 ** (index - 3)) for index in range(4)), best=3)
    page = page_for(record)
    paths = [points for _, points in sorted(lines(page, "Parallel coordinates").items())]
    (xs, scores), ys = zip(*[[x for x, _ in points] for points in paths], strict=True), {y for _, y in paths[0]}
    for places in (xs, scores):
        steps = [after - before for before, after in itertools.pairwise(places)]
        assert min(steps) > 20 and max(steps) - min(steps) <= 0.21, "equal ratios, equal distances"
    assert all({y for _, y in points} == ys for points in paths), "an axis is one height"
    spots = [spot for _, spot in sorted(dots(page, "inner.lr").items())]
    assert all(x < right for (x, _), (right, _) in itertools.pairwise(spots))
    assert all(y > higher for (_, y), (_, higher) in itertools.pairwise(spots))


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=20), st.sampled_from(["uniform", "loguniform"]))
def test_axes_are_monotone_and_hold_everything(values, kind):
    axis = Axis.of("x", {kind: [0.1, 10.0]}, values)
    shares = [axis.share(axis.unit({"x": value})) for value in sorted(values)]
    assert shares == sorted(shares) and shares[0] > 0.0 and shares[-1] < 1.0
    assert all(0.0 <= axis.share(unit) <= 1.0 for unit, _ in axis.ticks(40))


def test_categories_are_evenly_spaced_and_their_trials_side_by_side():
    axis = Axis.of("x", {"choice": [64, 8, 16]}, [32, 8])
    assert axis.categories == ("8", "16", "32", "64"), "numbers by size, that of the base among them"
    units = [axis.unit({"x": value}) for value in (8, 16, 32, 64)]
    assert units == [0.0, 1.0, 2.0, 3.0] and math.isnan(axis.unit({}))
    assert Axis.of("x", {"choice": [True, None, 1]}, []).categories == ("true", "null", "1")
    space = {"policy.core": {"choice": ["ssm", "gru"]}}
    found = [dots(page_for(sweep(*make(), space=space)), "policy.core") for _ in range(2) for make in [cores]]
    assert found[0] == found[1] and len({x for x, _ in found[0].values()}) == 20
    assert max(found[0][index][0] for index in range(0, 20, 2)) < min(found[0][index][0] for index in range(1, 20, 2))


def cores():
    return [trial(index, -20.0, policy__core=("ssm", "gru")[index % 2]) for index in range(20)]


def test_stopped_trials_end_early_and_look_different():
    page = page_for(sweep(trial(0, -20.0, inner__lr=0.1), trial(1, -30.0, "stopped", 4, inner__lr=0.2), best=0))
    ends = {index: points[-1][0] for index, points in lines(page, "Learning curves").items()}
    assert ends[1] < ends[0]
    styles = {hint[:9]: path.get("class") for hint, path in hinted(page.pictures["Parallel coordinates"], "path")}
    assert "early" in styles["trial 001"] and "early" not in styles["trial 000"] and "best" in styles["trial 000"]
    assert "stopped at 4" in page.text


@pytest.mark.parametrize(
    ("metric", "posts", "best", "words"),
    [
        ("post_adaptation", [-20.0, -12.0], 1, "it beats the base (trial 000, −20.0) by 8.00 in return after adapt"),
        ("post_adaptation", [-20.0, -20.0], 1, "it does not beat the base (trial 000, return after adaptation −20.0)"),
        ("gain", [-20.0, -12.0], 1, "it beats the base (trial 000, 29.0) by 8.00 in gain of adaptation"),
        ("post_adaptation", [-20.0, -30.0], 0, "it is the base itself, which no other finished trial beats"),
        ("post_adaptation", [math.nan, -30.0], 1, "the base (trial 000) has no score to compare it with"),
        ("post_adaptation", [-20.0, -30.0], None, "there is no best one"),
        ("post_adaptation", [-20.0], 7, "there is no best one"),
    ],
)
def test_the_verdict(metric, posts, best, words):
    record = sweep(*(trial(index, post, inner__lr=0.1) for index, post in enumerate(posts)), best=best, metric=metric)
    assert words in verdict(record) and words in page_for(record).text


def test_a_base_that_was_stopped_is_no_equal():
    record = sweep(trial(0, -30.0, "stopped", 4), trial(1, -12.0), best=1)
    assert "(trial 000, −30.0, stopped at 4 of 10 iterations)" in verdict(record)


def test_a_sweep_of_the_adapter_counts_its_calls():
    def make(calls):
        space = {"adapter.lr": {"loguniform": [0.001, 0.1]}}
        curves = [tuple(Point(k, -40.0, -30.0 + k + index) for k in calls) for index in range(3)]
        trials = [
            TrialRecord(i, {"adapter.lr": 0.01}, curve, "finished", "", 0, 1.0, "") for i, curve in enumerate(curves)
        ]
        return page_for(sweep(*trials, space=space, best=2, iterations=3))

    page = make([1, 2, 3])
    assert [*page.pictures] == ["Parallel coordinates", "adapter.lr", "Adaptation curves"]
    assert "up to 3 calls of the Adapter" in page.text and "iteration" not in page.text
    assert [*make([0]).pictures] == ["Parallel coordinates", "adapter.lr"], "one point is no curve"


def test_a_median_needs_five_trials_and_few_values_have_one_each():
    for amount in (4, 5):
        record = sweep(*(trial(index, -20.0 - index, inner__lr=0.1 * (index + 1)) for index in range(amount)))
        assert ("running median" in page_for(record).text) == (amount == 5)
    space = {"inner.num_steps": {"int_uniform": [1, 3]}}
    record = sweep(*(trial(index, -20.0 - index, inner__num_steps=1 + index % 2) for index in range(6)), space=space)
    page = page_for(record)
    bars = [part.get("d") for part in page.pictures["inner.num_steps"].iter() if part.get("class") == "whisker trend"]
    heights = [[float(end.split()[1]) for end in re.split("[ML]", bar)[1:]] for bar in bars]
    spots = dots(page, "inner.num_steps")
    assert heights == [[spots[2][1]] * 2, [spots[3][1]] * 2] and "Bars: median of 3 or more" in page.text


def test_trials_that_diverged_do_not_hide_the_others():
    assert score_range([-30.0, -25.0, -20.0, -1e6], [-25.0]) == (-57.5, -20.0)
    assert score_range([-30.0, -20.0, -1e6], [-1e6]) == (-1e6, -20.0), "what must be seen is"
    assert score_range([math.nan], []) == (0.0, 0.0) and score_range([-3.0, -3.0], []) == (-3.0, -3.0)
    page = page_for(sweep(*(trial(i, post, inner__lr=0.1) for i, post in enumerate([-20.0, -22.0, -24.0, -1e6]))))
    spots = dots(page, "inner.lr")
    assert spots[3][1] - spots[0][1] < 10 * (spots[1][1] - spots[0][1]) and "drawn at the edge" in page.text


def test_many_settings_and_many_trials():
    space = {f"inner.s{column}": {"uniform": [0.0, 1.0]} for column in range(10)}
    values = [{f"inner__s{column}": (7 * row + column) % 11 / 10 for column in range(10)} for row in range(200)]
    trials = [trial(row, -20.0 - row % 17, **chosen) for row, chosen in enumerate(values)]
    page = page_for(sweep(*trials, space=space, best=0))
    found = lines(page, "Parallel coordinates")
    assert found.keys() == set(range(200)) and {len(points) for points in found.values()} == {11}
    assert len(page.html) < 1_500_000
    page = page_for(sweep(*(trial(index, -20.0 - index, inner__lr=0.1) for index in range(MOST_DRAWN + 10))))
    assert len(lines(page, "Parallel coordinates")) == MOST_DRAWN
    assert "leave out the 10 trials with the lowest scores" in page.text


@pytest.mark.parametrize("value", [0.1, 0.0, -1.0, 1e300, 5e-324, math.inf, math.nan, None, "text", True, [1]])
@pytest.mark.parametrize("kind", ["uniform", "loguniform", "int_uniform", "choice", ""])
def test_equal_and_odd_values(kind, value):
    space = {"inner.lr": {kind: [value, value]} if kind else {}}
    page = page_for(sweep(trial(0, -20.0, inner__lr=value), trial(1, -20.0, inner__lr=value), space=space, best=0))
    assert lines(page, "Parallel coordinates").keys() == {0, 1}


@pytest.mark.parametrize("trials", [(), (TrialRecord(0, {}, (), "running", "", 0, 0.0, ""),)])
def test_a_sweep_that_has_hardly_begun(trials):
    for space in ({}, SPACE):
        text = page_for(sweep(*trials, space=space)).text
        assert "No trial has finished with a score yet" in text and "No trial has failed." in text


def test_a_cause_stands_once():
    causes = ["no memory", "no memory", "", "no memory"]
    page = page_for(sweep(*(TrialRecord(i, {}, (), "failed", cause, 0, 0.0, "") for i, cause in enumerate(causes))))
    assert "trials 000, 001 and 003 no memory trial 002 no cause is known" in page.text


any_float = st.floats() | st.sampled_from([0.0, 1.0, -1.0])
any_value = st.recursive(
    st.none() | st.booleans() | st.integers() | any_float | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
any_text = st.text(st.characters(), max_size=8)
any_key = st.sampled_from(["inner.lr", "<b>", "a&b"]) | any_text
any_point = st.builds(Point, st.integers(0, 100), any_float, any_float)
any_trial = st.builds(
    TrialRecord,
    index=st.integers(0, 4),
    settings=st.dictionaries(any_key, any_value, max_size=3),
    curve=st.lists(any_point, max_size=3).map(tuple),
    state=st.sampled_from(STATES),
    cause=any_text,
    num_env_steps=st.integers(0, 10**12),
    seconds=any_float,
    params_sha256=any_text,
)
any_sweep = st.builds(
    SweepRecord,
    name=any_text,
    space=st.dictionaries(
        any_key,
        st.dictionaries(
            st.sampled_from(["uniform", "loguniform", "int_uniform", "choice"]),
            any_value | st.lists(any_value, max_size=3),
            max_size=1,
        ),
        max_size=3,
    ),
    metric=st.sampled_from(["post_adaptation", "pre_adaptation", "gain"]),
    iterations=st.integers(0, 100),
    trials=st.lists(any_trial, max_size=6).map(tuple),
    best=st.none() | st.integers(0, 4),
    comparison=any_text,
)


@settings(max_examples=100, deadline=None)
@given(any_sweep)
def test_any_records_make_a_page(record):
    page = page_for(record)
    page.html.encode("utf-8")
    assert all(svg is None or svg.tag.endswith("svg") for svg in page.pictures.values())
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names)) and not {"b>", "script", "img", "a"} & {tag for tag, _ in page.tags}


@given(st.floats(-20.0, 20.0), st.floats(0.01, 20.0))
def test_ticks_of_a_logarithmic_axis_are_round_few_and_inside(low, width):
    found = log_ticks(low, low + width)
    assert 1 <= len(found) <= 5 and found == sorted(set(found))
    assert all(low - 1e-6 <= unit <= low + width + 1e-6 for unit in found)
    assert all(len(f"{10**unit:.6e}".partition("e")[0].rstrip("0")) <= 5 for unit in found)


def test_the_colours_can_be_told_apart_on_light_and_on_dark_paper():
    light, dark = (
        re.findall(r"--s\d: (#\w{6})", part) for part in STYLE.read_text(encoding="utf-8").split("@media")[:2]
    )
    for paper, colours in (("#ffffff", light), ("#1c2026", dark)):
        contrasts = [contrast(paper, colour) for colour in colours]
        assert len(colours) == 7 and contrasts == sorted(contrasts), "the better, the stronger, whatever hue one sees"
        assert contrasts[0] >= 3.0 and min(b / a for a, b in itertools.pairwise(contrasts)) > 1.15


def contrast(first, second):
    """WCAG 2's ratio of two colours."""
    shares = [[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in (first, second)]
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour] for colour in shares]
    dim, bright = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (bright + 0.05) / (dim + 0.05)


def test_a_picture_takes_its_own_ticks_and_hints_its_lines():
    picture = Picture("p", "title", "words", (0.0, 1.0), (0.0, 1.0))
    picture.x_axis("letters", [0.0, 1.0], ["<a>", "b"])
    picture.line([0.0, math.nan, 1.0], [0.0, 1.0, 1.0], "g1", hint="a & b")
    svg = picture.standalone()
    assert "&lt;a&gt;</text>" in svg and "<title>a &amp; b</title><path" in svg and "nan" not in svg
