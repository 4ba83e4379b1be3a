"""The fixtures of the tests that need SLURM; they are skipped where it is not installed."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import Cluster, join, leave, locked, why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These come first: they take turns, and at the end of a test run the other workers would have nothing to do."""
    items.sort(key=lambda item: not {"cluster", "accounting_cluster"} & set(getattr(item, "fixturenames", ())))


def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run's own, the same one for all of its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def _member(folder: Path, *options: str) -> Iterator[Cluster]:
    cluster = join(folder, *options)
    # Also where the run is interrupted before the fixture's end.
    atexit.register(leave, cluster)
    yield cluster
    leave(cluster)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running SLURM, shared with other tests. A test that would upset others asks for `alone` as well."""
    if reason := why_not("slurmctld", "slurmd", "sbatch", "munged"):
        pytest.skip(reason)
    with _member(_shared_folder(tmp_path_factory) / "slurm") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def accounting_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A second one, of whose jobs sacct knows."""
    if reason := why_not("slurmctld", "slurmd", "sbatch", "munged", "slurmdbd", "mariadbd"):
        pytest.skip(reason)
    with _member(_shared_folder(tmp_path_factory) / "slurm-accounting", "--accounting") as cluster:
        yield cluster


@pytest.fixture
def alone() -> None:
    """For a test that takes a node or the controller away, or fills a node: no other SLURM test runs meanwhile."""


@pytest.fixture(autouse=True)
def _turn(request: pytest.FixtureRequest) -> Iterator[None]:
    names = {"cluster", "accounting_cluster"} & set(request.fixturenames)
    if not names:
        yield
        return
    clusters: list[Cluster] = [request.getfixturevalue(name) for name in names]
    with locked(clusters[0].folder.with_name("turn"), exclusive="alone" in request.fixturenames):
        yield
        for one in clusters:
            # For the report of a test that fails.
            print(one.run("sinfo", "--Node", "--long"), one.run("squeue", "--states=all"), one.log(), sep="\n")
        # What a failed test leaves running would be in the next one's way.
        if "alone" in request.fixturenames:
            for one in clusters:
                one.run("scancel", "--user=root")
