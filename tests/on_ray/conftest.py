"""One local Ray for all tests of this folder."""

from collections.abc import Iterator

import pytest

from cluster.session import Cluster, connect
from gpt_core.settings import ClusterSettings


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with connect(ClusterSettings(num_cpus=4)) as connected:
        yield connected
