"""``python cluster/submit.py ...`` is ``ssm-metarl submit ...``: see cluster/README.md."""

import sys

from ssm_metarl.cli import main

sys.exit(main(["submit", *sys.argv[1:]]))
