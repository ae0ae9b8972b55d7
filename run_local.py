"""Meta-trains on this machine: Navigation2D unless told otherwise. The same as `ssm-metarl train`.

    python run_local.py [--config FILE] [--section.field VALUE ...]

What it does, in order (see ssm_metarl/cli.py and ssm_metarl/runtime/driver.py):

    config = load_config(...)                 one YAML file + overrides -> one frozen tree
    summary = MetaTrainer(config).run()       Ray actors adapt to tasks, the driver steps on their meta-gradients
    write_evaluation(...), write_report(...)
"""

import sys

from ssm_metarl.runtime.process import prepare_process

if __name__ == "__main__":
    prepare_process()  # before numpy and torch are imported
    from ssm_metarl.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
