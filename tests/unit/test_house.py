"""The rules of the house, checked: style, and which part may import which."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", "."],
        ["ruff", "format", "--no-cache", "--check", "."],
        ["lint-imports", "--no-cache"],
    ],
    ids=" ".join,
)
def test_rules(command):
    result = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_the_package_starts_nothing():
    """Neither torch nor Ray nor gymnasium; a policy needs no Ray."""
    code = (
        "import sys, ssm_metarl; assert not {'torch', 'ray', 'gymnasium', 'numpy'} & set(sys.modules);"
        "from ssm_metarl import SSM, MetaMAML, Adapter, Environment, ConfigError; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_every_public_name_is_there():
    import ssm_metarl

    assert all(getattr(ssm_metarl, name) is not None for name in ssm_metarl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = ssm_metarl.absent


def test_files_and_functions_stay_short():
    import ast

    long = []
    for path in (ROOT / "ssm_metarl").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            long.append(f"{path.name} has {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(f"{path.name}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not long, long
