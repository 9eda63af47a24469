"""One local Ray for the tests of this folder, gone before those of another folder start their own."""

from collections.abc import Iterator

import pytest

from cluster.session import Cluster, connect
from gpt_core.settings import ClusterSettings


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    with connect(ClusterSettings(num_cpus=4)) as connected:
        yield connected
