"""Copies of remote shards: what training reads is what lies in the store, whatever the network and others do."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpt_core import storage as storage_module
from gpt_core.corpus.corpus import Corpus
from gpt_core.corpus.order import Cells, Order
from gpt_core.corpus.shard_cache import RemoteShard, ShardCache
from gpt_core.corpus.shard_fetcher import ShardFetcher
from gpt_core.errors import CorpusError, ResourceError
from gpt_core.model.presets import ModelShape
from gpt_core.training.checkpoint import weights_digest
from gpt_core.training.loop import train
from gpt_core.training.training_plan import TrainingPlan
from tests.s3_server import Proxy, s3_bucket, upload
from tests.tiny_corpus import write_tiny_corpus
from tests.unit import tiny_corpus
from tests.unit.tiny_corpus import TinyCorpus

ROOT = Path(__file__).parents[2]
STEPS = 30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyCorpus:
    return tiny_corpus.build(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def stored(tiny: TinyCorpus) -> Iterator[str]:
    with s3_bucket("corpora") as bucket:
        yield upload(tiny.folder, f"{bucket}/tiny")


@pytest.fixture
def proxy(stored: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Stands between the cache and the server; the corpus is `stored`."""
    made = Proxy(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    yield made
    made.close()


def order_of(corpus: Corpus) -> Order:
    return corpus.order(seed=1, window_tokens=16, sequences_per_step=8, block_windows=20)


def batches(corpus: Corpus) -> list[list[list[int]]]:
    return [corpus.batch(order_of(corpus), step).tolist() for step in range(STEPS)]


def shards_of(corpus: Corpus) -> list[RemoteShard]:
    order = order_of(corpus)
    found = [shard for step in range(STEPS) for shard in corpus.remote_shards(order.cells(step), 16)]
    return list(dict.fromkeys(found))


def cache_in(folder: Path, num_shards: float = 100.0) -> ShardCache:
    # A tiny shard has about 7 kB.
    return ShardCache(folder / "cache", int(num_shards * 10_000), pause=lambda seconds: None)


def shard_gets(proxy: Proxy) -> dict[str, int]:
    return {path: count for path, count in proxy.gets.items() if "/train/" in path}


def test_each_shard_is_fetched_once_by_all_workers_of_a_node_together(
    tiny: TinyCorpus, stored: str, proxy: Proxy, tmp_path: Path
) -> None:
    expected = batches(Corpus(str(tiny.folder)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: batches(Corpus(stored, cache=cache_in(tmp_path))), range(4)))
    assert found == [expected] * 4
    assert set(shard_gets(proxy).values()) == {1}
    assert len(shard_gets(proxy)) == tiny_corpus.NUM_PLANS


@pytest.mark.parametrize("mood", ["slow down", "cut", "flip"])
def test_throttled_cut_and_damaged_answers_change_nothing(
    tiny: TinyCorpus, stored: str, proxy: Proxy, tmp_path: Path, mood: str
) -> None:
    chance = random.Random(0)
    corpus = Corpus(stored, cache=cache_in(tmp_path))
    proxy.mood = lambda path: mood if chance.random() < 0.4 else "pass"
    assert batches(corpus) == batches(Corpus(str(tiny.folder)))
    assert sum(shard_gets(proxy).values()) > tiny_corpus.NUM_PLANS


def test_an_object_that_stays_wrong_is_an_error_and_leaves_nothing(stored: str, proxy: Proxy, tmp_path: Path) -> None:
    corpus, cache = Corpus(stored), cache_in(tmp_path)
    proxy.mood = lambda path: "flip"
    with pytest.raises(CorpusError, match=r"arrow: found [0-9a-f]{32}; expected \d+ bytes with the digest"):
        cache.hold(shards_of(corpus)[0])
    assert cache.num_bytes() == 0


def test_the_cache_never_holds_more_than_its_bytes_and_drops_what_was_unused_for_longest(
    tiny: TinyCorpus, stored: str, tmp_path: Path
) -> None:
    largest = max(shard.num_bytes for shard in shards_of(Corpus(stored)))
    cache = ShardCache(tmp_path / "cache", 4 * largest)
    local, remote = Corpus(str(tiny.folder)), Corpus(stored, cache=cache)
    order = order_of(local)
    for step in range(STEPS):
        assert remote.batch(order, step).tolist() == local.batch(order, step).tolist()
        assert cache.num_bytes() <= 4 * largest
    remote.close()
    first, *others = shards_of(remote)
    for shard in others[:4]:
        held = cache.hold(shard)
        assert held is not None
        held.close()
    assert not cache.has(first)
    assert cache.has(others[3])


def test_files_of_others_in_the_cache_folder_are_neither_removed_nor_counted(stored: str, tmp_path: Path) -> None:
    first, second, *_ = shards_of(Corpus(stored))
    names = ("mine.arrow", "mine.part", f"{'0' * 31}.arrow", f"{'0' * 32}.arrow.bak", f"{'G' * 32}.arrow")
    cache = ShardCache(tmp_path / "cache", max(first.num_bytes, second.num_bytes) + 10)
    for name in names:
        (cache.folder / name).write_bytes(bytes(2 * cache.max_bytes))
    for shard in (first, second):  # there is room for one of them
        held = cache.hold(shard)
        assert held is not None
        held.close()
    assert not cache.has(first)
    assert all((cache.folder / name).exists() for name in names)
    assert cache.num_bytes() == second.num_bytes


def test_a_digest_that_is_none_names_no_file(stored: str, tmp_path: Path) -> None:
    first, *_ = shards_of(Corpus(stored))
    (tmp_path / "victim.part").write_text("mine")
    with pytest.raises(CorpusError, match=r"found the digest '\.\./victim'; expected 32 hex digits"):
        cache_in(tmp_path).hold(replace(first, digest="../victim"))
    assert (tmp_path / "victim.part").read_text() == "mine"


def test_a_copy_in_use_is_not_removed_and_without_room_the_store_is_read_itself(
    tiny: TinyCorpus, stored: str, tmp_path: Path
) -> None:
    first, second, *_ = shards_of(Corpus(stored))
    cache = ShardCache(tmp_path / "cache", max(first.num_bytes, second.num_bytes) + 10)
    held = cache.hold(first)
    assert held is not None
    assert cache.hold(second) is None
    assert cache.has(first)
    assert batches(Corpus(stored, cache=cache)) == batches(Corpus(str(tiny.folder)))
    held.close()
    assert cache.hold(second) is not None
    assert not cache.has(first)


def test_once_fetched_ahead_no_step_asks_the_network(
    tiny: TinyCorpus, stored: str, proxy: Proxy, tmp_path: Path
) -> None:
    cache = cache_in(tmp_path)
    corpus = Corpus(stored, cache=cache)
    order = order_of(corpus)
    wanted = shards_of(corpus)
    with ShardFetcher(cache, lambda step: corpus.remote_shards(order.cells(step), 16), 0, STEPS):
        wait_until(lambda: all(cache.has(shard) for shard in wanted))
    assert corpus.manifest.batches.num_rows  # the manifest's table of batches is part of being warm
    before = dict(proxy.gets)
    proxy.mood = lambda path: "slow down"
    assert batches(corpus) == batches(Corpus(str(tiny.folder)))
    assert dict(proxy.gets) == before


def test_fetching_ahead_follows_the_order_and_stops_at_its_share_until_the_reader_moves(
    stored: str, tmp_path: Path
) -> None:
    cache, corpus = cache_in(tmp_path), Corpus(stored)
    order = order_of(corpus)
    needs = [corpus.remote_shards(order.cells(step), 16) for step in range(STEPS)]
    share = 3 * max(shard.num_bytes for need in needs for shard in need)
    asked: list[int] = []
    fetched: list[RemoteShard] = []
    hold = cache.hold
    cache.hold = lambda shard: (fetched.append(shard), hold(shard))[1]
    with ShardFetcher(cache, lambda step: (asked.append(step), needs[step])[1], 0, STEPS, share) as fetcher:
        for reading in range(STEPS):
            fetcher.reading(reading)
            wait_until(lambda reading=reading: max(asked, default=-1) >= reading)
            ahead = {shard for need in needs[reading : max(asked)] for shard in need}
            assert sum(shard.num_bytes for shard in ahead) <= share
        wait_until(lambda: max(asked) == STEPS - 1)
    assert list(dict.fromkeys(fetched)) == [shard for shard in shards_of(corpus) if shard in fetched]


def wait_until(is_so) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_worker_killed_while_fetching_leaves_nothing_wrong(stored: str, proxy: Proxy, tmp_path: Path) -> None:
    shard = shards_of(Corpus(stored))[0]
    arguments = [str(tmp_path / "cache"), shard.url, str(shard.num_bytes), shard.digest]
    code = (
        "import sys; from gpt_core.corpus.shard_cache import RemoteShard, ShardCache"
        "; folder, url, size, digest = sys.argv[1:]"
        "\nShardCache(folder, 100_000).hold(RemoteShard(url, int(size), digest))"
    )
    proxy.mood = lambda path: "stall"
    with subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT) as worker:
        wait_until(lambda: list((tmp_path / "cache").glob("*.part")) and shard_gets(proxy))
        worker.send_signal(signal.SIGKILL)
    proxy.mood = lambda path: "pass"
    (left,) = (tmp_path / "cache").glob("*.part")
    assert left.stat().st_size == shard.num_bytes
    cache = cache_in(tmp_path)
    held = cache.hold(shard)
    assert held is not None
    with storage_module.Storage.of(shard.url).open_read(shard.url) as source:
        assert held.path.read_bytes() == source.read()
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix] == [held.path.name]


def test_what_a_killed_worker_left_makes_room_for_others(stored: str, tmp_path: Path) -> None:
    first, second, *_ = shards_of(Corpus(stored))
    cache = ShardCache(tmp_path / "cache", second.num_bytes)
    (cache.folder / f"{first.digest}.part").write_bytes(bytes(first.num_bytes))
    assert cache.hold(second) is not None
    assert cache.num_bytes() == second.num_bytes


def test_a_waiting_worker_takes_the_copy_another_made(stored: str, proxy: Proxy, tmp_path: Path) -> None:
    shard = shards_of(Corpus(stored))[0]
    asked, answer = threading.Event(), threading.Event()

    def wait(path: str) -> str:
        asked.set()
        answer.wait(60)
        return "pass"

    proxy.mood = wait
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(cache_in(tmp_path).hold, shard)
        assert asked.wait(60)
        others = [pool.submit(cache_in(tmp_path).hold, shard) for _ in range(2)]
        answer.set()
        assert all(one.result(60) is not None for one in [first, *others])
    assert sum(shard_gets(proxy).values()) == 1


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ResourceError, match=r"train.cache_folder: found a folder that others can write into"):
        ShardCache(tmp_path / "cache")


def test_windows_name_the_shards_they_cross(tiny: TinyCorpus, stored: str) -> None:
    corpus = Corpus(stored)
    cells = corpus.every_window(16)
    named = {shard.url for shard in corpus.remote_shards(cells, 16)}
    assert named == {f"{stored}/train/{plan:08d}.arrow" for plan in range(tiny_corpus.NUM_PLANS)}
    for source, window in zip(cells.sources, cells.windows, strict=True):
        cell = Cells(np.array([source]), np.array([0]), np.array([window]))
        spans = corpus.indexes[source].spans(int(window) * 16, 17)
        assert [shard.url for shard in corpus.remote_shards(cell, 16)] == [corpus.shard_path(s.shard) for s in spans]


def test_weights_trained_from_the_store_are_those_trained_from_a_disk(stored: str, tmp_path: Path) -> None:
    corpus = write_tiny_corpus(tmp_path / "corpus")
    url = upload(corpus, f"{stored}/words")
    shape = ModelShape(n_layer=1, n_head=1, n_embd=16, num_positions=32, vocabulary_size=257)
    plan = TrainingPlan(
        str(corpus), str(tmp_path / "local"), shape, num_steps=4, window_tokens=32, batch_sequences=8,
        micro_batch_sequences=2, block_windows=16, evaluate_sequences=4,
    )  # fmt: skip
    cache = {"cache_bytes": 1 << 20, "cache_folder": str(tmp_path / "cache")}
    remote = replace(plan, corpus=url, output=str(tmp_path / "remote"), **cache)
    digests = [weights_digest(path) for one in (plan, remote) if (path := train(one).checkpoint) is not None]
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1
