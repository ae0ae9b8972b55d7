"""The benchmark of the core runs, and its numbers are what it says they are."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "model.py"


def test_the_quick_benchmark_prints_its_table_and_its_claims(tmp_path):
    command = [sys.executable, "-W", "error", SCRIPT, "--quick", "--json", tmp_path / "model.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert {"python", "torch", "numpy"} <= set(report["versions"]) and report["repeats"] == 3
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + sum(len(rows) for rows in report["seconds"].values()) == 13
    assert len(report["claims"]) == 4
    for claim, found in report["claims"].items():
        assert claim in done.stdout
        assert found["interval"][0] <= found["ratio"] <= found["interval"][1]
        assert found["holds"] == (found["ratio"] >= 2.8 if ">=" in claim else found["ratio"] <= 0.75)
