"""What can go wrong, one function per row of the table in docs/reliability.md; sizes are parameters.

Every function takes a folder to write into and returns a `Record`. None raises for what it tests: that is a failure in
its record. Those that train in this process want Ray to run already, with `common.CPUS` CPUs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # what goes wrong on command: faults, processes, damage
