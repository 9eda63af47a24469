import errno
import os
from pathlib import Path
from typing import Any

import pytest
import ray
import ray._private.auto_init_hook
from ray.exceptions import RayTaskError

from cluster import session
from cluster.own_cpus import usable_cpus
from cluster.session import cause_of, is_mistake_in_code, own_error_in
from gpt_core.errors import CheckpointError
from gpt_core.settings import ClusterSettings


def _wrapped(error: Exception) -> BaseException:
    """Return an error as Ray hands it over: of a class made for it, the worker's own inside."""
    return RayTaskError("work", "Traceback of the worker", error).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "is_mistake"),
    [(TypeError("an unexpected keyword"), True), (NameError("x"), True), (RuntimeError("peer lost"), False)],
)
def test_a_mistake_in_the_program_is_told_from_a_lost_worker(error: Exception, is_mistake: bool) -> None:
    assert is_mistake_in_code(_wrapped(error)) is is_mistake


def test_a_workers_own_sentence_reaches_the_user_unchanged() -> None:
    told = CheckpointError("run/checkpoints", "no room", "a place with room", "free space")
    assert str(own_error_in(_wrapped(told))) == str(told)
    assert str(cause_of(_wrapped(told))) == str(told)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("wrap", [lambda error: error, _wrapped])
def test_a_full_disk_is_the_users_to_mend_and_no_lost_worker(number: int, wrap: Any) -> None:
    error = wrap(OSError(number, os.strerror(number), "out/manifest.json"))
    told = f"out/manifest.json: found {os.strerror(number)}; expected a place with room to write; free space and run it"
    assert str(own_error_in(error)) == f"{told} again"
    assert cause_of(error).exit_code == 2


def test_any_other_error_is_named_by_its_last_line() -> None:
    assert str(cause_of(_wrapped(ValueError("first\nlast")))).startswith("ValueError: found last; ")


def test_what_ray_tells_a_driver_is_said_in_a_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    session._tell({"lines": ["2 workers killed due to memory pressure\nmore"], "pid": "raylet"}, ignore_prefix=False)
    session._tell({"lines": ["Task ServeController.graceful_shutdown failed."], "pid": "raylet"})
    for nothing in ({"lines": []}, {"lines": [""]}, {}):
        session._tell(nothing)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "Ray: 2 workers killed due to memory pressure\n")


def test_a_thread_that_calls_ray_after_its_end_starts_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray._private.auto_init_hook, "enable_auto_connect", True)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    session._start(ClusterSettings(num_cpus=1), None)
    with pytest.raises(Exception, match="Ray has not been started yet"):
        ray.put(1)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "350000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_containers_quota_limits_the_cpus_of_a_ray_of_the_jobs_own(
    files: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert usable_cpus(tmp_path) == cpus
