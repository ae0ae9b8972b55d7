"""Every python block of README.md and docs/*.md runs, top to bottom, in a fresh namespace per file."""

import re
from pathlib import Path

import pytest

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
