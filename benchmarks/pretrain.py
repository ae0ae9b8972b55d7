"""Makes the policies that ship with the package: trains each with seed 0 as below, evaluates it, exports it.

    python benchmarks/pretrain.py [navigation2d cartpole ...] [--workers 0] [--out FOLDER]

The table of each is that of ``ssm-metarl train``: 40 held-out tasks, three strategies. The seed was not chosen by it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ssm_metarl.runtime.process import prepare_process

CONFIGS = Path(__file__).parent / "configs"
RECIPES: dict[str, Path | None] = {"navigation2d": None, "cartpole": CONFIGS / "cartpole.yaml"}
"""Name -> the configuration it is trained with; None: the built-in defaults, which are those of README's command."""


def make(name: str, out: Path, workers: int) -> str:
    """Trains one policy and writes its two files. Returns what it came to."""
    from ssm_metarl.config import load_config
    from ssm_metarl.deployment import export
    from ssm_metarl.evaluation.evaluate import adaptation_table
    from ssm_metarl.runtime.driver import MetaTrainer

    with tempfile.TemporaryDirectory() as folder:
        settings = {"run.dir": folder, "run.name": name, "workers.num_workers": workers, "eval.every": 0}
        config = load_config(RECIPES[name], settings)
        summary = MetaTrainer(config).run()
        path = export(summary.folder, out / f"{name}.safetensors")
    size_kb = (path.stat().st_size + path.with_suffix(".yaml").stat().st_size) / 1024
    end = f"{size_kb:.0f} kB in two files, params_sha256 {summary.params_sha256}"
    return f"pretrained:{name}\n\n{adaptation_table(config, summary.evaluation)}\n\n{end}\n"


def main() -> None:
    from ssm_metarl import pretrained
    from ssm_metarl.runtime.checkpoint import versions

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(RECIPES))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path, default=pretrained.FOLDER)
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(RECIPES)):
        parser.error(f"no recipe for {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    for name in options.names:
        print(make(name, options.out, options.workers), flush=True)
    print(versions())


if __name__ == "__main__":
    prepare_process()
    main()
