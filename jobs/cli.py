"""The command line of every job: ``herd JOB [--config FILE] [--section.field VALUE ...]``.

A job is a module with a docstring, whose first line describes it, ``SETTINGS``, a pydantic
model, ``EXAMPLE``, words that ask for it, ``main(settings)``, whose result is printed as the
summary, and where a word may come before any flag its ``ARGUMENT``; or one with
``command(words)``, which reads the words itself and returns the exit code. This module
finds the job, loads its settings, runs it, and turns what goes wrong into one clear message
and an exit code: 0 done, or stopped early as its settings ask for, 1 failed, 2 a mistake the user can mend, 130
interrupted (Ctrl-C), 143 terminated (SIGTERM: what a preempted machine sends, handled as Ctrl-C is).
"""

import ast
import difflib
import importlib
import importlib.metadata
import os
import select
import sys
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster import interrupts
from gpt_core.errors import HerdError, UserError, full_disk

_FOLDER = Path(__file__).parent
_format_with_place = warnings.formatwarning
_MODULES = {
    "pipeline": "pipeline",
    "tokenize": "tokenize_corpus",
    "pretrain": "pretrain",
    "finetune": "finetune",
    "evaluate": "evaluate",
    "generate": "generate",
    "serve": "serve",
    "inspect": "inspect_prompt",
    "plan": "plan",
    "verify": "verify",
    "trace": "trace",
    "replay": "replay",
    "compare": "compare",
    "export": "export_model",
    "import": "import_model",
    "submit": "submit",
    "jobs": "submitted",
    "model": "model",
    "train-tokenizer": "train_tokenizer",
}


def main(argv: list[str] | None = None) -> int:
    """Run a job and return its exit code; results go to stdout, errors to stderr."""
    warnings.formatwarning = _format_warning
    words = sys.argv[1:] if argv is None else argv
    argv = [word for word in words if word != "--traceback"]
    try:
        with interrupts.handled():
            exit_code = _dispatch(argv)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        return _stopped(stop, argv)
    except HerdError as error:
        return _fail(str(error), error.exit_code, show_traceback=argv != words)
    except BrokenPipeError as error:
        return 1 if _stdout_is_closed() else _unforeseen(error, argv, show_traceback=argv != words)
    except Exception as error:
        return _unforeseen(error, argv, show_traceback=argv != words)
    return exit_code


def run_module(file: str) -> None:
    """Run the job whose module is `file` and exit: the last line of each job module, under ``__main__``.

    The module is imported anew by its own name: classes of ``__main__`` do not reach Ray's workers.
    """
    job = next(job for job, module in _MODULES.items() if module == Path(file).stem)
    sys.exit(main([job, *sys.argv[1:]]))


def _dispatch(argv: list[str]) -> int:
    match argv:
        case ["help", job] if job in job_names():
            return _run(job, ["--help"])
        case [] | ["--help" | "-h" | "help", *_]:
            print(_overview())
        case ["--version", *_]:
            print(f"herd {_version()}")
        case [job, *rest] if job in job_names():
            return _run(job, rest)
        case [job, *_]:
            near = difflib.get_close_matches(job, job_names(), n=1)
            remedy = f"did you mean herd {near[0]}?" if near else "herd --help lists them"
            raise UserError("herd", f"no job {job!r}", "a job", remedy)
    return 0


def _run(job: str, argv: list[str]) -> int:
    """Load a job's settings, run it and print its summary; or print its help."""
    module = module_of(job)
    if hasattr(module, "command"):
        return module.command(argv)
    if "--help" in argv or "-h" in argv:
        print(_help(job, module))
        return 0
    summary = module.main(settings_of(job, argv))
    if summary is not None:
        print(summary)
    return 0


def settings_of(job: str, argv: list[str]) -> Any:
    """Return the settings that a job's words ask for."""
    from jobs.command_line.loader import load

    module = module_of(job)
    if argv and not argv[0].startswith("-") and hasattr(module, "ARGUMENT"):
        argv = [f"--{module.ARGUMENT}={argv[0]}", *argv[1:]]
    return load(module.SETTINGS, argv, f"herd {job}")


def _help(job: str, module: ModuleType) -> str:
    from jobs.command_line.help_text import render

    argument = getattr(module, "ARGUMENT", "").upper()
    return render(f"herd {job}", _description(job), module.SETTINGS, module.EXAMPLE, argument)


def module_of(job: str) -> ModuleType:
    """Return the module of a job."""
    return importlib.import_module(f"jobs.{_MODULES[job]}")


def job_names() -> list[str]:
    """Return the names of the jobs whose modules are there."""
    return [job for job, module in _MODULES.items() if (_FOLDER / f"{module}.py").exists()]


def _description(job: str) -> str:
    """Return the first line of a job module's docstring, without importing the module."""
    tree = ast.parse((_FOLDER / f"{_MODULES[job]}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def _overview() -> str:
    jobs = job_names()
    width = max(map(len, jobs), default=0)
    lines = [f"  {job:<{width}}  {_description(job)}" for job in jobs]
    return "\n".join(
        [
            "herd: raw text to a trained GPT, and a trained GPT to batches of text, on a Ray cluster",
            "",
            "usage: herd JOB [--config FILE] [--section.field VALUE ...]",
            "",
            "jobs",
            *lines,
            "",
            "herd JOB --help explains a job's settings; herd --version names the version",
        ]
    )


def _version() -> str:
    try:
        return importlib.metadata.version("gpt-herd")
    except importlib.metadata.PackageNotFoundError:
        return "from a checkout that is not installed"


def _program(argv: list[str]) -> str:
    return f"herd {argv[0]}" if argv and not argv[0].startswith("-") else "herd"


def _stopped(stop: KeyboardInterrupt, argv: list[str]) -> int:
    """Say that a job was stopped, by its own settings or by a signal, and return the exit code."""
    if isinstance(stop, interrupts.Stopped):
        return _fail(str(stop), 0)
    word, exit_code = ("terminated", 143) if isinstance(stop, interrupts.Terminated) else ("interrupted", 130)
    return _fail(f"{word}: {_program(argv)} stopped; run the same command again to continue", exit_code)


def _unforeseen(error: Exception, argv: list[str], *, show_traceback: bool) -> int:
    """Report an error nobody planned for by its first line; a disk that is full is the user's to mend."""
    if full := full_disk(error):
        return _fail(str(full), full.exit_code, show_traceback=show_traceback)
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    hint = "" if show_traceback else "; add --traceback to see where it arose"
    return _fail(f"{_program(argv)} failed: {type(error).__name__}: {text}{hint}", 1, show_traceback=show_traceback)


def _fail(message: str, exit_code: int, *, show_traceback: bool = False) -> int:
    if show_traceback:
        traceback.print_exc()
    print(message, file=sys.stderr)
    return exit_code


def _format_warning(message: Any, category: type[Warning], *place: Any) -> str:
    """Return a warning's text; what the project itself warns of is no matter of a place in the code."""
    is_own = category.__module__.startswith("gpt_core.")
    return f"{message}\n" if is_own else _format_with_place(message, category, *place)


def _stdout_is_closed() -> bool:
    """Tell whether the reader of our output went away, and if so let Python exit in peace."""
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):  # no real file, as under a test's capture
        return False
    poll = select.poll()
    poll.register(stdout, 0)
    closed = any(events & select.POLLERR for _, events in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return closed
