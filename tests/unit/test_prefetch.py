"""Promises of gpt_core.training.prefetch."""

import time

import numpy as np
import pytest

from gpt_core.errors import CorpusError
from gpt_core.training.prefetch import Prefetcher


def test_batches_come_in_the_order_of_their_steps():
    with Prefetcher(lambda step: np.array([step]), 3, 7) as batches:
        assert [int(batches.take()[0][0]) for _ in range(4)] == [3, 4, 5, 6]


def test_an_error_while_making_a_batch_is_raised_where_it_is_taken():
    def make(step):
        if step == 1:
            raise CorpusError("shard", "damage", "none", "restore it")
        return np.array([step])

    with Prefetcher(make, 0, 5) as batches:
        batches.take()
        with pytest.raises(CorpusError, match="damage"):
            batches.take()


def test_no_more_than_the_depth_is_made_ahead_and_leaving_ends_the_thread():
    made = []

    def make(step):
        made.append(step)
        return np.array([step])

    with Prefetcher(make, 0, 1000, depth=2) as batches:
        batches.take()
        time.sleep(0.05)
        assert len(made) <= 4  # one taken, two ready, one in hand
    assert not batches._thread.is_alive()


def test_waiting_is_measured():
    def make(step):
        time.sleep(0.05)
        return np.array([step])

    with Prefetcher(make, 0, 1) as batches:
        assert batches.take()[1] > 0.02
