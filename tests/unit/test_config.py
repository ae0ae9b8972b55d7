"""The configuration: every wrong one ends as a ConfigError that names file, key and cure, a right one round-trips."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ssm_metarl import config as config_module
from ssm_metarl.config import ConfigError, OuterConfig, TrainConfig, dump_yaml, load_config

HUGE = "9" * 400

# Key, value as written in YAML, what the message must say besides the file and the key.
WRONG_VALUES = [
    ("inner.lr", "-1", ["= -1", "greater than 0"]),
    ("inner.lr", "0", ["greater than 0"]),
    ("inner.lr", "abc", ["'abc'", "a finite number greater than 0"]),
    ("inner.lr", ".inf", ["a finite number"]),
    ("inner.lr", "-.inf", ["a finite number"]),
    ("inner.lr", ".nan", ["a finite number"]),
    ("inner.lr", "inf", ["a finite number"]),
    ("inner.lr", "nan", ["a finite number"]),
    ("inner.lr", "1e999", ["a finite number"]),
    ("inner.lr", HUGE, ["a finite number"]),
    ("inner.lr", "true", ["= true", "a finite number"]),
    ("inner.lr", "yes", ["a finite number"]),
    ("inner.lr", "null", ["= null", "a finite number"]),
    ("inner.lr", "[1]", ["a finite number"]),
    ("inner.lr", "{lr: 1}", ["a finite number"]),
    ("inner.lr", "2024-01-01", ["a finite number"]),
    ("inner.num_steps", "1.5", ["a whole number of at least 0"]),
    ("inner.num_steps", "1.0", ["a whole number"]),
    ("inner.num_steps", "-1", ["at least 0"]),
    ("inner.num_steps", "true", ["a whole number"]),
    ("inner.num_steps", "one", ["a whole number"]),
    ("inner.num_steps", "010", ["'010'", "a whole number"]),
    ("inner.num_steps", "1:30", ["a whole number"]),
    ("inner.first_order", "1", ["true or false"]),
    ("inner.first_order", "0.0", ["true or false"]),
    ("inner.first_order", "maybe", ["true or false"]),
    ("inner.estimator", "dics", ["dice, lvc, naive", "did you mean dice?"]),
    ("inner.estimator", "3", ["dice, lvc, naive"]),
    ("algorithm", "prompp", ["maml, fomaml, promp", "did you mean promp?"]),
    ("algorithm", "null", ["maml, fomaml, promp"]),
    ("algorithm", "[maml]", ["maml, fomaml, promp"]),
    ("algorithm", "{maml: 1}", ["maml, fomaml, promp"]),
    ("seed", "-1", ["at least 0"]),
    ("seed", "true", ["a whole number"]),
    ("seed", HUGE, ["less than 2**63"]),
    ("seed", "{value: 1}", ["a whole number"]),
    ("iterations", "0", ["at least 1"]),
    ("iterations", "1e3", ["a whole number"]),
    ("tasks_per_iteration", "3000000000", ["less than 2**31"]),
    ("env.id", "''", ["non-empty text"]),
    ("env.id", "'  '", ["non-empty text"]),
    ("env.id", '"a\\nb"', ["without control characters"]),
    ("env.horizon", "0", ["a whole number of at least 1 or null"]),
    ("env.horizon", "1.5", ["at least 1 or null"]),
    ("env.vary", "3", ["a mapping"]),
    ("env.vary", "null", ["a mapping"]),
    ("env.vary", "[length]", ["a mapping"]),
    ("env.vary", "{1: {uniform: [0, 1]}}", ["a mapping from a parameter's name"]),
    ("env.vary", "{length: 3}", ["env.vary.length", "one key of uniform"]),
    ("env.vary", "{length: {}}", ["env.vary.length", "one key of uniform"]),
    ("env.vary", "{length: {unifrm: [0, 1]}}", ["env.vary.length", "did you mean uniform?"]),
    ("env.vary", "{length: {uniform: [0, 1], scale: [1, 2]}}", ["one key of uniform"]),
    ("env.vary", "{length: {uniform: [1, 0]}}", ["low <= high"]),
    ("env.vary", "{length: {uniform: [1]}}", ["[low, high]"]),
    ("env.vary", "{length: {uniform: [1, 2, 3]}}", ["[low, high]"]),
    ("env.vary", "{length: {uniform: 3}}", ["[low, high]"]),
    ("env.vary", "{length: {uniform: {a: 1}}}", ["[low, high]"]),
    ("env.vary", "{length: {uniform: '12'}}", ["[low, high]"]),
    ("env.vary", "{length: {uniform: [0, .inf]}}", ["finite numbers"]),
    ("env.vary", "{length: {uniform: [0, .nan]}}", ["finite numbers"]),
    ("env.vary", "{length: {uniform: [0, true]}}", ["finite numbers"]),
    ("env.vary", f"{{length: {{uniform: [0, {HUGE}]}}}}", ["finite numbers"]),
    ("env.vary", "{length: {loguniform: [0, 1]}}", ["0 < low"]),
    ("env.vary", "{length: {normal: [0, -1]}}", ["std >= 0"]),
    ("env.vary", "{length: {choice: []}}", ["at least one number"]),
    ("env.vary", "{length: {scale_pow: [0, 1]}}", ["base > 0"]),
    ("env.vary", "{length: {scale_pow: [2, -1]}}", ["limit >= 0"]),
    ("policy.core", "rnn", ["ssm, lti, gru, mlp"]),
    ("policy.hidden_dim", "0", ["at least 1"]),
    ("policy.inputs", "[]", ["at least one input"]),
    ("policy.inputs", "[observation, observation]", ["each named once"]),
    ("policy.inputs", "[observatoin]", ["policy.inputs[0]", "did you mean observation?"]),
    ("policy.inputs", "[observation, 3]", ["policy.inputs[1]", "previous_action"]),
    ("policy.inputs", "{observation: 1}", ["a list"]),
    ("policy.initial_log_std", "2.5", ["at least -5 and at most 2"]),
    ("outer.clip", "-0.1", ["greater than 0"]),
    ("advantage.discount", "1.01", ["greater than 0 and at most 1"]),
    ("advantage.gae_lambda", "-0.5", ["at least 0 and at most 1"]),
    ("workers.num_workers", "-1", ["a whole number of at least 0 or auto"]),
    ("workers.num_workers", "atuo", ["or auto; did you mean auto?"]),
    ("workers.num_workers", "true", ["or auto"]),
    ("workers.num_workers", "1.0", ["or auto"]),
    ("workers.num_workers", "null", ["or auto"]),
    ("workers.task_deadline_s", "0", ["greater than 0"]),
    ("checkpoint.keep", "0", ["at least 1"]),
    ("run.name", "a/b", ["plain folder name"]),
    ("run.name", "..", ["plain folder name"]),
    ("run.name", "-x", ["plain folder name"]),
    ("run.name", "a b", ["plain folder name"]),
    ("run.name", "x" * 101, ["at most 100"]),
    ("run.dir", "''", ["non-empty text"]),
]
# YAML reads a number, the command line the text that was typed.
WRONG_IN_YAML_ALONE = [
    ("run.name", "5", ["text", "in quotes", "or null"]),
    ("run.dir", "null", ["text"]),
    ("env.id", "7", ["text"]),
    ("env.id", "[a]", ["text"]),
    ("policy.inputs", "observation", ["a list, each one of observation"]),
    ("inner", "null", ["must be a section", "lr, num_steps"]),
    ("inner", "[]", ["must be a section"]),
    ("inner", "3", ["must be a section"]),
    ("outer", "gradient", ["must be a section"]),
    ("outer", "null", ["must be a section"]),
]
WRONG_KEYS = [
    ("inner.lrr", ["did you mean inner.lr?"]),
    ("inner.clip", ["did you mean outer.clip?"]),
    ("inner.num-stepz", ["did you mean inner.num_steps?"]),
    ("inner.zzz", ["inner has lr, num_steps, first_order, estimator"]),
    ("iner.lr", ["iner", "did you mean inner"]),
    ("sead", ["did you mean seed?"]),
    ("lr", ["inner.lr", "outer.lr", "adapter.lr"]),
    ("zzz", ["there are seed, iterations"]),
    ("Seed", ["did you mean seed?"]),
    ("env.vari", ["did you mean env.vary?"]),
]
WRONG_FILES = {
    "empty": (b"", "empty"),
    "blank": (b"\n  \n", "empty"),
    "comments": (b"# seed: 1\n# nothing else\n", "empty"),
    "null": (b"null\n", "empty"),
    "markers": (b"---\n...\n", "empty"),
    "list": (b"- seed: 1\n", "must be a mapping of settings"),
    "scalar": (b"seed\n", "must be a mapping of settings"),
    "number": (b"3\n", "but is 3"),
    "latin1": ("run: {name: größe}".encode("latin-1"), "not UTF-8"),
    "utf16": ("seed: 1".encode("utf-16"), "not UTF-8"),
    "binary": (bytes(range(256)), "not UTF-8"),
    "nul": (b"seed: 1\x00", "not valid YAML"),
    "tab": (b"inner:\n\tlr: 1\n", "line 2, column 1"),
    "bracket": (b"env: {vary: [", "line 1"),
    "colon": (b"inner: lr: 1\n", "line 1"),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "not valid YAML"),
    "duplicate": (b"seed: 1\nseed: 2\n", "line 2, column 1: seed is given twice"),
    "duplicate section": (b"inner: {lr: 1}\nouter: {lr: 1}\ninner: {lr: 2}\n", "inner is given twice"),
    "duplicate field": (b"inner:\n  lr: 1\n  lr: 2\n", "line 3, column 3: lr is given twice"),
    "duplicate quoted": (b"seed: 1\n'seed': 2\n", "seed is given twice"),
    "unhashable key": (b"{[1]: 2}", "unhashable"),
    "python object": (b"seed: !!python/object/apply:os.getpid []\n", "constructor"),
    "odd tag": (b"seed: !!int x\n", "not valid YAML"),
    "set": (b"policy: {inputs: !!set {observation}}\n", "constructor"),
    "unknown alias": (b"seed: *x\n", "alias"),
    "recursive alias": (b"&a {env: {vary: *a}}\n", "env.vary"),
    "deep": (b"seed: " + b"[" * 600, "not valid YAML"),
    "long integer": (b"seed: " + b"9" * 5000, "not valid YAML"),
    "number key": (b"1: 2\n", "the key 1 is not a setting"),
    "null key": (b"~: 2\n", "the key null is not a setting"),
    "number key below": (b"inner: {1: 2}\n", "the key 1 in inner"),
}


def as_yaml(key: str, value: str) -> str:
    section, dot, field = key.partition(".")
    return f"{section}:\n  {field}: {value}\n" if dot else f"{key}: {value}\n"


def refusal(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


@pytest.mark.parametrize(("key", "value", "words"), WRONG_VALUES + WRONG_IN_YAML_ALONE)
def test_wrong_value_names_file_key_and_rule(tmp_path, key, value, words):
    path = tmp_path / "wrong.yaml"
    message = refusal(path, as_yaml(key, value))
    assert message.startswith(f"{path}: {key}")
    assert "\n" not in message and len(message) < 400
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("key", "words"), WRONG_KEYS)
def test_wrong_key_names_the_nearest(tmp_path, key, words):
    message = refusal(tmp_path / "wrong.yaml", as_yaml(key, "1"))
    assert message.startswith(f"{tmp_path / 'wrong.yaml'}: ") and key.partition(".")[0] in message
    assert "is not a setting" in message and all(word in message for word in words), message


@pytest.mark.parametrize(("content", "words"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_file_is_named(tmp_path, content, words):
    message = refusal(tmp_path / "wrong.yaml", content)
    assert message.startswith(f"{tmp_path / 'wrong.yaml'}: ") and words in message, message
    assert "\n" not in message and len(message) < 400


def test_missing_file_and_folder(tmp_path):
    (tmp_path / "quick.yaml").write_text("seed: 1")
    with pytest.raises(ConfigError, match=r"quik\.yaml: no such file; did you mean quick\.yaml\?"):
        load_config(tmp_path / "quik.yaml")
    with pytest.raises(ConfigError, match=r"nowhere.*no such file"):
        load_config(tmp_path / "nowhere" / "a.yaml")
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("a\0b")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("x" * 5000)


def test_several_problems_are_all_listed(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("sead: 1\ninner: {lr: -1, num_steps: 1.5}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"outer.lr": 0, "outer.lrr": 1})
    lines = str(caught.value).splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(["command line"] * 2 + [str(path)] * 3)
    for key in ("sead", "inner.lr", "inner.num_steps", "outer.lr ", "outer.lrr"):
        assert any(f": {key}" in line for line in lines)


def test_an_override_is_blamed_only_for_its_own_key(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("inner: {lr: -1}")
    assert load_config(path, {"inner.lr": 0.5}).inner.lr == 0.5
    with pytest.raises(ConfigError, match=r"^command line: policy\.inputs\[0\]"):
        load_config(None, {"policy.inputs": ["nothing"]})
    with pytest.raises(ConfigError, match=r"^sweep: inner\.lr"):
        load_config(None, {"inner.lr": -1}, source="sweep")
    path.write_text("inner: null")
    with pytest.raises(ConfigError, match=r"a\.yaml: inner = null must be a section"):
        load_config(path, {"inner.lr": 0.5})
    with pytest.raises(ConfigError, match=r"inner is a section, not a setting: set inner\.lr"):
        load_config(None, {"inner": {"lr": 1}})


@pytest.mark.parametrize("value", ["0.001", "1e-3", "'1e-3'", "1.0e-3", "+.001"])
def test_floats_as_people_write_them(tmp_path, value):
    path = tmp_path / "a.yaml"
    path.write_text(as_yaml("inner.lr", value))
    assert load_config(path).inner.lr == 0.001


def test_good_corners(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(
        b"\xef\xbb\xbfrun: {name: 2024-01-01}\ninner: {lr: 1, first_order: yes}\nworkers: {num_workers: 0}\n"
    )
    config = load_config(path)
    assert config.run.name == "2024-01-01" and config.workers.num_workers == 0
    assert config.inner.first_order is True and config.inner.lr == 1.0 and type(config.inner.lr) is float
    path.write_text("a: &base {lr: 0.5}\ninner:\n  <<: *base\n  num_steps: 2\n")
    with pytest.raises(ConfigError, match=r"^[^\n]*: a is not a setting[^\n]*$"):
        load_config(path)
    path.write_text("inner: &base {lr: 0.5}\nouter:\n  <<: *base\n  clip: 0.2\n")
    assert load_config(path).outer.lr == 0.5
    path.write_text("{}")
    assert load_config(path) == load_config() == TrainConfig()


def test_vary_takes_names_with_dots():
    config = load_config(
        None, {"env.vary.model.opt.gravity[2]": {"scale": [0.5, 2]}, "env.vary.length": {"choice": [1]}}
    )
    assert config.env.vary == {"model.opt.gravity[2]": {"scale": (0.5, 2.0)}, "length": {"choice": (1.0,)}}
    assert config.override({"env.vary": {}}).env.vary == {}
    with pytest.raises(ConfigError, match=r"env\.vary\.length = .*low <= high"):
        config.override({"env.vary.length": {"uniform": [2, 1]}})


# Presets


@pytest.mark.parametrize("algorithm", config_module.PRESETS)
def test_preset_sets_its_fields(algorithm):
    for config in (TrainConfig(algorithm=algorithm), load_config(None, {"algorithm": algorithm})):
        flat = config.model_dump()
        for key, value in config_module.PRESETS[algorithm].items():
            section, field = key.split(".")
            assert flat[section][field] == value


def test_defaults_are_the_default_preset():
    assert TrainConfig() == TrainConfig(algorithm="promp")
    assert (OuterConfig().rule, OuterConfig().num_passes) == ("clipped", 5)


def test_explicit_values_win_over_the_preset(tmp_path):
    path = tmp_path / "a.yaml"
    for text in ("algorithm: maml\nouter: {num_passes: 7}\n", "outer: {num_passes: 7}\nalgorithm: maml\n"):
        path.write_text(text)
        assert (load_config(path).outer.num_passes, load_config(path).outer.rule) == (7, "gradient")
    path.write_text("outer: {num_passes: 7}")
    assert load_config(path, {"algorithm": "maml"}).outer.num_passes == 7
    path.write_text("algorithm: fomaml")
    assert load_config(path, {"inner.first_order": False}).inner.first_order is False
    assert load_config(path, {"algorithm": "promp"}).outer.num_passes == 5
    assert load_config(path, {"algorithm": "promp"}).inner.first_order is False
    # An explicit value that equals a default is explicit all the same.
    assert load_config(None, {"outer.rule": "clipped", "algorithm": "maml"}).outer.rule == "clipped"
    assert TrainConfig(algorithm="maml", outer=OuterConfig(num_passes=5)).outer == OuterConfig(rule="gradient")
    assert TrainConfig(algorithm="maml", outer={"lr": 1.0}).outer.rule == "gradient"


def test_override_keeps_what_was_explicit_and_changes_the_preset():
    config = load_config(None, {"algorithm": "maml", "outer.num_passes": 7})
    changed = config.override({"algorithm": "promp"})
    assert (changed.outer.rule, changed.outer.num_passes) == ("clipped", 7)
    assert config.override({}) == config and config.override({"seed": 3}).outer == config.outer
    assert pickle.loads(pickle.dumps(config)).override({"algorithm": "promp"}) == changed
    with pytest.raises(ConfigError, match=r"^override: inner\.lr = -1"):
        config.override({"inner.lr": -1})


def test_presets_name_real_settings():
    assert {key for preset in config_module.PRESETS.values() for key in preset} <= set(config_module.settings())


# The record


def test_frozen():
    config = TrainConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.inner.lr = 1.0


def test_identity_ignores_exactly_the_named_sections():
    config = TrainConfig()
    ignored = {"workers", "run", "checkpoint", "eval", "adapter", "iterations"}
    assert set(config.model_dump()) - set(config.identity()) == ignored
    assert json.loads(json.dumps(config.identity())) == config.identity()
    others: dict[str, Any] = {
        "seed": 1, "iterations": 7, "tasks_per_iteration": 3, "algorithm": "maml", "env.horizon": 9,
        "policy.core": "gru", "inner.lr": 0.7, "outer.lr": 0.7, "advantage.discount": 0.5, "adapter.lr": 0.7,
        "workers.num_workers": 3, "eval.every": 3, "checkpoint.keep": 9, "run.name": "x",
    }  # fmt: skip
    assert {key.partition(".")[0] for key in others} == set(config.model_dump())
    for key, value in others.items():
        same = config.override({key: value}).identity() == config.identity()
        assert same == (key.partition(".")[0] in ignored), key


def test_every_setting_says_what_it_means():
    assert len(config_module.settings()) <= 60
    for key, schema in config_module.settings().items():
        assert schema.get("description"), key


def test_import_is_light():
    heavy = ("torch", "numpy", "ray", "tyro", "gymnasium")
    code = f"import sys, ssm_metarl.options; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Properties

numbers = st.floats(1e-300, 1e300)
pairs = st.tuples(numbers, numbers).map(sorted)
distributions = st.one_of(
    st.builds(lambda kind, pair: {kind: pair}, st.sampled_from(["uniform", "loguniform", "scale", "normal"]), pairs),
    st.builds(lambda values: {"choice": values}, st.lists(numbers, min_size=1, max_size=3)),
    st.builds(lambda base, limit: {"scale_pow": [base, limit]}, numbers, numbers),
)
printable = st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable() and not text.isspace())
inputs = st.lists(
    st.sampled_from(["observation", "previous_action", "previous_reward", "episode_start"]), min_size=1, unique=True
)
overrides = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "algorithm": st.sampled_from(["maml", "fomaml", "promp"]),
        "env.id": printable,
        "env.horizon": st.none() | st.integers(1, 2**31 - 1),
        "env.vary": st.dictionaries(printable, distributions, max_size=3),
        "policy.inputs": inputs,
        "policy.initial_log_std": st.floats(-5, 2),
        "inner.lr": numbers | numbers.map(repr),
        "inner.first_order": st.booleans(),
        "outer.num_passes": st.integers(1, 99),
        "outer.rule": st.sampled_from(["gradient", "clipped"]),
        "workers.num_workers": st.just("auto") | st.integers(0, 9),
        "run.name": st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,9}", fullmatch=True),
        "run.dir": printable,
    },
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(overrides)
def test_round_trip(tmp_path, dotted: dict[str, Any]):
    config = load_config(None, dotted)
    path = tmp_path / "a.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    again = load_config(path)
    assert again == config and again.identity() == config.identity() and dump_yaml(again) == dump_yaml(config)
    assert load_config(path, dotted) == config


keys = st.sampled_from([*config_module.settings(), "inner", "outer", "env", "zzz"]).map(
    lambda key: key.rpartition(".")[2]
)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates() | st.binary(max_size=4)
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | scalars, inner, max_size=4),
    max_leaves=8,
)
sections = st.dictionaries(st.sampled_from([*TrainConfig().model_dump(), "x"]), trees, max_size=4)


def accepted_or_refused(path: Path) -> None:
    try:
        assert isinstance(load_config(path), TrainConfig)
    except ConfigError as error:
        assert all(line.startswith(f"{path}: ") for line in str(error).splitlines())


@quick
@given(sections | trees)
def test_garbage_yaml_is_refused_in_words(tmp_path, tree):
    path = tmp_path / "garbage.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="replace")
    accepted_or_refused(path)


@quick
@given(
    st.binary(max_size=60) | st.text(alphabet="seedinrl:{}[]&*!-?|>'\"#%@`, \n\t~<=.0123_", max_size=60).map(str.encode)
)
def test_garbage_bytes_are_refused_in_words(tmp_path, content):
    path = tmp_path / "garbage.yaml"
    path.write_bytes(content)
    accepted_or_refused(path)


@quick
@given(
    st.dictionaries(
        st.sampled_from([*config_module.settings(), "env.vary.x", "inner", "a.b.c"]) | st.text(), trees, max_size=4
    )
)
def test_garbage_overrides_are_refused_in_words(dotted):
    try:
        assert isinstance(load_config(None, dotted), TrainConfig)
    except ConfigError as error:
        assert all(line.startswith("command line: ") for line in str(error).splitlines())
