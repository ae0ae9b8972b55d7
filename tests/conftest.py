"""One thread for every test (before numpy is imported), no pictures on a screen, and one Ray for the whole session.

With ``-n 3`` the tests that start Rays of their own run one after the other, those that share one likewise, and all
others beside them: the first two mostly wait. The three portions take about as long as each other.
"""

import os

from ssm_metarl.runtime.process import ENVIRONMENT

os.environ.update({name: value for name, value in ENVIRONMENT.items() if name.endswith("_THREADS")})
# Ray gives its workers the lowest priority; on a busy machine the tests would wait for them for minutes.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (the name is Ray's)
# Idle processes that Ray starts beforehand lack our workers' environment, so none of them would ever be used.
os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112

import pytest
from hypothesis import settings

# How long an example takes says something about the machine, and nothing about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


OWN_RAY = ("cluster", "doctor", "ray_start", "reliability")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """tests/runtime is two portions of work, every other test a portion of its own."""
    from xdist.scheduler import LoadScopeScheduling

    class ProcessesAlone(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            if not nodeid.startswith("tests/runtime/"):
                return nodeid
            name = nodeid.removeprefix("tests/runtime/test_").partition(".py")[0]
            return "own ray" if name in OWN_RAY else "shared ray"

    return ProcessesAlone(config, log)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    from ssm_metarl.runtime.process import limit_threads

    limit_threads()


@pytest.fixture(scope="session")
def ray_session():
    """A small Ray; tests that spread work ask for it."""
    import ray

    ray.init(
        address="local",  # not somebody else's, should one run on this machine
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()
