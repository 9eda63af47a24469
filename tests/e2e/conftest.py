"""One private head for all tests that speak to a cluster."""

from collections.abc import Iterator

import pytest

from tests.e2e.private_head import PrivateHead, why_not


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateHead]:
    if reason := why_not():
        pytest.skip(reason)
    started = PrivateHead(tmp_path_factory.mktemp("head"))
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.stop()
