"""``python -m ssm_metarl``, which is the command ``ssm-metarl``."""

import sys

from ssm_metarl.runtime.process import prepare_process


def run() -> None:
    """Runs the command line in a process that was prepared for it."""
    prepare_process()
    from ssm_metarl.cli import main

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
