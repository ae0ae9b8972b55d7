"""Every python block of README.md and docs/*.md runs, top to bottom, in a fresh namespace per file."""

import re
import shlex
from pathlib import Path

import pytest

from ssm_metarl.cli import COMMANDS, main
from ssm_metarl.config import load_config
from ssm_metarl.env_runner.tasks import make_family
from ssm_metarl.options import parse
from ssm_metarl.runtime.jobs import Job
from ssm_metarl.tuning.config import load_sweep

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    """(line number, code) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        yield text[: match.start()].count("\n") + 2, match.group(1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_blocks_are_configurations(page, tmp_path):
    for number, (_, code) in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(code, encoding="utf-8")
        family = make_family(load_config(path).env)
        assert family.vary, "the blocks show what varies"


def test_the_commands_of_readme_run(tmp_path, monkeypatch, capsys):
    """The block after the set-up, line by line in this process, made small: of two values for a key the last counts.

    All but ``doctor``, which starts Ray, and runs as a whole in tests/runtime/test_doctor.py."""
    tiny = "--iterations 2 --tasks_per_iteration 2 --env.horizon 5 --env.episodes_per_task 2 --workers.num_workers 0"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("eval: {num_tasks: 2}\n", encoding="utf-8")
    _, _, (_, commands), _ = blocks(ROOT / "README.md", "sh")
    statuses = []
    lines = [shlex.split(line, comments=True) for line in commands.splitlines()]
    for program, *arguments in lines:
        if arguments[0] == "run_local.py":
            arguments[0] = "train"
        assert program in (".venv/bin/python", ".venv/bin/ssm-metarl")
        if arguments == ["doctor"]:
            continue
        small = {"report": "", "export": "", "evaluate": "--workers.num_workers 0", "adapt": "--env.horizon 5"}
        small["check-env"] = ""
        try:
            statuses.append(main([*arguments, *small.get(arguments[0], tiny).split()]))
        except SystemExit as stop:
            statuses.append(stop.code)
    assert statuses == [0] * (len(lines) - 1), capsys.readouterr().err
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"first", "second"}


def test_the_commands_for_sweeps_and_clusters_are_understood(tmp_path, monkeypatch):
    """The next block; its commands run in tests/runtime/test_tune.py and test_cluster.py."""
    monkeypatch.chdir(ROOT)
    *_, (_, commands) = blocks(ROOT / "README.md", "sh")
    seen = []
    for line in commands.splitlines():
        program, name, *arguments = shlex.split(line, comments=True)
        assert program == ".venv/bin/ssm-metarl"
        parsed, overrides = parse(COMMANDS[name][0], arguments, program)
        seen.append(name)
        if name == "tune":
            load_sweep(parsed.file, overrides)
        elif name == "submit":
            Job.prepare(parsed.config, overrides, parsed.working_dir)
    assert seen == ["tune", "tune", "train", "submit"]


def test_readme_shows_the_seed_api():
    code = "\n".join(code for _, code in blocks(ROOT / "README.md", "python"))
    for name in (
        "SSM(",
        "MetaMAML(",
        "inner_loop(",
        "outer_loop(",
        "outer_optimizer.step()",
        "Adapter(",
        "Environment(",
    ):
        assert name in code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tree_in_readme_is_the_tree_on_disk():
    """A line per file: every module of the package is drawn, and nothing that does not exist."""
    tree = next(code for _, code in blocks(ROOT / "README.md", "text") if "ssm_metarl/" in code)
    drawn = set(re.findall(r"([\w.]+\.py)\b", tree))
    modules = {path.name for path in (ROOT / "ssm_metarl").rglob("*.py")} - {"__init__.py"}
    assert modules <= drawn, sorted(modules - drawn)
    everything = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert drawn <= everything, sorted(drawn - everything)
