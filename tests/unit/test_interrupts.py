import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cluster import interrupts
from cluster.session import _native_code_silenced

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def unraisable_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt changes it for the rest of a process; these tests go on in theirs."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, interrupts.Terminated)]
)
def test_a_call_that_waits_is_interrupted_at_once(number: signal.Signals, raised: type[BaseException]) -> None:
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    with interrupts.handled(), pytest.raises(raised):
        threading.Event().wait(10)


def test_a_signal_that_comes_twice_at_once_is_one_and_another_later_is_another() -> None:
    def interrupt(*seconds: float) -> None:
        for wait in seconds:
            threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT)).start()

    with interrupts.handled():
        interrupt(0.1, 0.12, 0.9)
        with pytest.raises(KeyboardInterrupt):
            threading.Event().wait(10)
        assert not threading.Event().wait(0.4)
        with pytest.raises(KeyboardInterrupt):
            threading.Event().wait(10)


def test_a_block_that_holds_interrupts_ends_before_one_is_raised() -> None:
    ended = threading.Event()

    def hold() -> None:
        with interrupts.held():
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.2)
            ended.set()
        threading.Event().wait(10)

    with interrupts.handled(), pytest.raises(KeyboardInterrupt):
        hold()
    assert ended.is_set()


def test_that_an_interrupt_waits_is_said_while_ray_starts_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    def start() -> None:
        with interrupts.held(), _native_code_silenced():
            os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(10)

    with interrupts.handled(), pytest.raises(KeyboardInterrupt):
        start()
    assert capfd.readouterr().err == "stopping as soon as what is under way can be left\n"


def test_the_handlers_of_before_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupts.handled():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_library_that_took_a_lock_is_not_interrupted_before_it_can_give_it_back() -> None:
    lock = threading.Lock()
    library: dict[str, Any] = {"lock": lock, "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT)}
    source = "def call():\n    lock.acquire()\n    interrupt()\n    sum(range(1000))\n    lock.release()\n"
    exec(compile(source, "/library.py", "exec"), library)

    def work() -> None:
        library["call"]()
        threading.Event().wait(10)

    with interrupts.handled(), pytest.raises(KeyboardInterrupt):
        work()
    assert not lock.locked()


def test_an_interrupt_that_comes_during_an_import_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "slow_module.py").write_text(
        "import os, signal\n"
        "class Swallows:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        sum(range(1000))\n"
        "Swallows()\n"
        "imported = True\n"
    )
    script = (
        "import threading\n"
        "from cluster import interrupts\n"
        "with interrupts.handled():\n"
        "    try:\n"
        "        import slow_module\n"
        "        threading.Event().wait(10)\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', slow_module.imported)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "interrupted True\n"
    assert done.stderr == "stopping as soon as what is under way can be left\n"


def test_destructors_that_fail_after_an_interrupt_print_nothing() -> None:
    script = (
        "import os, signal, threading\n"
        "from cluster import interrupts\n"
        "class Fails:\n"
        "    def __del__(self):\n"
        "        raise RuntimeError('no cluster any more')\n"
        "try:\n"
        "    with interrupts.handled():\n"
        "        held = Fails()\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        threading.Event().wait(10)\n"
        "except KeyboardInterrupt:\n"
        "    del held\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "no cluster any more" not in done.stderr


def test_a_call_that_never_returns_is_interrupted_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_PATIENCE_SECONDS", 0.2)
    started = time.monotonic()

    def spin() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while time.monotonic() < started + 30:
            pass

    with interrupts.handled(), pytest.raises(KeyboardInterrupt):
        spin()
    assert time.monotonic() < started + 30


def test_ray_has_the_functions_that_are_taken_for_waiting() -> None:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    places = Path(spec.origin).parents[1]
    named = [(file, name) for file, name in interrupts._WAITS if file.startswith("ray/")]
    assert len(named) >= 4
    for file, name in named:
        assert f"def {name}(" in (places / file).read_text(), file
