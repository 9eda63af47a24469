"""One local Ray for the tests of this folder, gone before those of another folder start their own."""

from collections.abc import Iterator

import pytest
import torch

from cluster.session import Cluster, connect
from gpt_core.settings import ClusterSettings


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    with connect(ClusterSettings(num_cpus=4)) as connected:
        yield connected


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> None:
    """Engines beside which a replica's text is held compute with its number of threads."""
    torch.set_num_threads(1)
