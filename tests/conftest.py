"""One thread for every test (before numpy is imported), no pictures on a screen, and one Ray for the whole session."""

import os

from ssm_metarl.runtime.process import ENVIRONMENT

os.environ.update({name: value for name, value in ENVIRONMENT.items() if name.endswith("_THREADS")})
# Ray gives its workers the lowest priority; on a busy machine the tests would wait for them for minutes.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (the name is Ray's)

import pytest


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
