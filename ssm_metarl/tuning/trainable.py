"""`MetaTrainable`: a trial as Ray Tune runs it, and what it asks of the cluster."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ray import tune

from ssm_metarl.config import ConfigError
from ssm_metarl.env_runner.tasks import TaskError
from ssm_metarl.runtime.actors import PoolError
from ssm_metarl.runtime.checkpoint import CheckpointError
from ssm_metarl.runtime.process import limit_threads
from ssm_metarl.tuning.config import Sweep, read_sweep
from ssm_metarl.tuning.folder import SWEEP, SweepFolder
from ssm_metarl.tuning.results import Report
from ssm_metarl.tuning.trials import Work, make_work, write_failure


def bundles(num_workers: int, cpus_per_worker: float) -> list[dict[str, float]]:
    """What a trial reserves: one bundle per worker process, or one for itself where it works in its own process."""
    return [{"CPU": cpus_per_worker} for _ in range(max(1, num_workers))]


def resources_for(num_workers: int, cpus_per_worker: float) -> tune.PlacementGroupFactory:
    """`bundles` for Ray Tune. A trial that has workers reserves nothing for itself: it mostly waits for them."""
    head = [{}] if num_workers else []
    return tune.PlacementGroupFactory([*head, *bundles(num_workers, cpus_per_worker)])


class MetaTrainable(tune.Trainable):
    """One trial after the other, each as its folder says: its state is there, so Tune's checkpoints hold nothing.

    ``config``: ``sweep`` (where the sweep is), ``index`` (which trial), ``num_workers`` and ``cpus_per_worker``.
    Each step is one report.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """See `resources_for`."""
        return resources_for(config["num_workers"], config["cpus_per_worker"])

    def setup(self, config: dict[str, Any]) -> None:
        """Nothing yet: what goes wrong should go wrong in a step, whose result can say so."""
        limit_threads()
        self._sweep: Sweep | None = None
        self._work: Work | None = None

    def step(self) -> dict[str, Any]:
        """``reports`` so far, or none and why: ``failed`` (the trial can never go on), ``trouble`` (not here and now),
        ``fatal`` (no trial can)."""
        said: dict[str, Any] = {"reports": [], "failed": "", "trouble": "", "fatal": ""}
        try:
            said["reports"] = [asdict(report) for report in self._advance()]
        except _NotShared as error:
            said["fatal"] = str(error)
        except TaskError as error:
            said["failed"] = self._fail(error)
        except (PoolError, CheckpointError, ConfigError, OSError) as error:
            said["trouble"] = _line(error)
        except RuntimeError as error:
            # torch says so of a gradient that is no longer finite; what derives from it is something else.
            if type(error) is not RuntimeError:
                raise
            said["failed"] = self._fail(error)
        if self._lets_go(said["reports"]):
            self.cleanup()
        return said

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Another trial in this process, or the same once more."""
        self.cleanup()
        return True

    def cleanup(self) -> None:
        """Lets go of the trial."""
        if self._work is not None:
            work, self._work = self._work, None
            work.close()

    def _advance(self) -> Sequence[Report]:
        if self._sweep is None:
            self._folder = SweepFolder.at(self.config["sweep"])
            self._sweep = _read_sweep(self._folder)
        if self._work is None:
            self._work = make_work(self._sweep, self._folder, self.config["index"])
        return self._work.advance()

    def _fail(self, error: Exception) -> str:
        """Writes down that the trial cannot go on; returns why."""
        cause = _line(error)
        try:
            write_failure(self._folder, self.config["index"], cause)
        except (ConfigError, OSError) as unwritten:
            cause = f"{cause} (not written down: {_line(unwritten)})"
        return cause

    def _lets_go(self, reports: Sequence[Mapping[str, Any]]) -> bool:
        """Whether another process may be the one to go on: after a failure, at a rung, at the end."""
        if not reports:
            return True
        last = reports[-1]["iteration"]
        return last >= self._sweep.iterations or self._sweep.is_rung(last)


class _NotShared(RuntimeError):
    """This machine does not have the sweep's folder."""


def _read_sweep(folder: SweepFolder) -> Sweep:
    try:
        return read_sweep(folder.storage.read(SWEEP), folder.path(SWEEP))
    except OSError as error:
        raise _NotShared(
            f"run.dir: a trial on {platform.node()} does not see {folder.path(SWEEP)} ({error}); on a cluster, run.dir "
            "must be a folder that all machines share, or a URI"
        ) from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
