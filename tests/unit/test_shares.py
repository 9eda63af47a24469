"""How plans are dealt out to a pool: all of them, in order, in ever smaller shares."""

import numpy as np
import pytest

from cluster.shard_job import shares


@pytest.mark.parametrize("count", [1, 2, 511, 512, 513, 20_000, 1_000_000])
def test_shares_hold_every_plan_once_in_order_and_never_grow(count: int) -> None:
    pending = np.arange(count) * 3
    dealt = list(shares(pending))
    assert np.array_equal(np.concatenate(dealt), pending)
    sizes = [len(share) for share in dealt]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert len(dealt) < 5000
