"""docs/environments.md lists what there is: every id, with the horizon and the sizes that it has."""

import re
from pathlib import Path

import gymnasium
import pytest

from ssm_metarl.config import EnvConfig
from ssm_metarl.env_runner.families import NATIVE
from ssm_metarl.env_runner.tasks import make_family

PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
IDS = sorted(key for key in gymnasium.registry if key.startswith("ssm_metarl/"))
LINE = re.compile(
    r"^\| ([\w-]+-v0)(?:, (\w+))? \| (\d+) \| (\d+) \| (\d+)( discrete)? \| -?[\d.]+ \[.*\] \|", re.MULTILINE
)


def test_every_family_and_variant_has_its_line():
    found = {(f"ssm_metarl/{name}", variant) for name, variant, *_ in LINE.findall(PAGE)}
    expected = set()
    for env_id in IDS:
        variants = list(NATIVE[env_id].variants) if env_id in NATIVE else []
        expected |= {(env_id, name) for name in variants} if len(variants) > 1 else {(env_id, "")}
    assert found == expected


@pytest.mark.parametrize("line", LINE.findall(PAGE), ids=lambda line: "-".join(filter(None, line[:2])))
def test_the_sizes_in_the_table_are_those_of_the_family(line):
    name, variant, horizon, observations, actions, discrete = line
    family = make_family(EnvConfig(id=f"ssm_metarl/{name}", variant=variant or None))
    sizes = (family.horizon, family.observation_dim, family.action_dim, family.discrete)
    assert sizes == (int(horizon), int(observations), int(actions), bool(discrete))


def test_every_family_is_described():
    described = set(re.findall(r"`(\w+)`", PAGE.split("### What chance earns")[0]))
    assert {env_id.removeprefix("ssm_metarl/").removesuffix("-v0") for env_id in IDS} <= described
