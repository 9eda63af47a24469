"""List, show, follow or stop the jobs of a running Ray cluster."""

import time
from typing import TYPE_CHECKING

from gpt_core.errors import UserError
from gpt_core.settings import Settings
from jobs import cli

if TYPE_CHECKING:
    from cluster.submission.head import Head, JobState

_HELP = """herd jobs: list, show, follow or stop the jobs of a running Ray cluster

usage: herd jobs [list]                    --cluster.address http://HEAD:8265
       herd jobs status JOB_ID             exits 0 for a job that runs or succeeded, else with its exit code
       herd jobs logs JOB_ID [--follow]    what it printed so far, or until it ends
       herd jobs stop JOB_ID               ends it as Ctrl-C would: a rerun continues

  --cluster.address  HTTP address of the head (Ray's dashboard); else RAY_API_SERVER_ADDRESS"""


class HeadSettings(Settings):
    """The cluster to ask."""

    address: str | None = None
    """HTTP address of the head, http://HEAD:8265; null takes RAY_API_SERVER_ADDRESS."""


class SubmittedSettings(Settings):
    """Settings of `herd jobs`."""

    cluster: HeadSettings = HeadSettings()
    follow: bool = False
    """Show the job's lines until it ends."""


def command(argv: list[str]) -> int:
    """Do what the words say and return the exit code."""
    if "--help" in argv or "-h" in argv:
        print(_HELP)
        return 0
    first_flag = next((place for place, word in enumerate(argv) if word.startswith("--")), len(argv))
    words, flags = argv[:first_flag], argv[first_flag:]
    from cluster.submission.head import Head
    from cluster.submission.head_address import address_of
    from jobs.command_line.loader import load

    verb, job_id = _asked(words)
    settings = load(SubmittedSettings, flags, "herd jobs")
    head = Head(address_of(settings.cluster.address))
    if verb == "list":
        print(_table(head.jobs()))
        return 0
    return _about_one(head, verb, job_id, follow=settings.follow)


def _asked(words: list[str]) -> tuple[str, str]:
    match words:
        case [] | ["list"]:
            return "list", ""
        case ["status" | "logs" | "stop" as verb, job_id]:
            return verb, job_id
    found = " ".join(words)
    raise UserError("herd jobs", repr(found), "list, status ID, logs ID or stop ID", "herd jobs --help explains them")


def _about_one(head: "Head", verb: str, job_id: str, *, follow: bool) -> int:
    from cluster.submission import submitting

    if verb == "stop":
        state = submitting.stop(head, job_id)
        print(f"{job_id}: {state.status}")
        return 0
    if verb == "logs" and follow:
        return submitting.follow(head, job_id)
    state = head.job(job_id)
    if verb == "logs":
        print(head.logs(job_id), end="")
        return 0
    print(_table([state]))
    return submitting.exit_code_of(state) if state.finished else 0


def _table(states: "list[JobState]") -> str:
    if not states:
        return "no jobs"
    rows = [("job", "status", "started", "took", "output")]
    rows += [_row(state) for state in states]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    )


def _row(state: "JobState") -> tuple[str, str, str, str, str]:
    started, ended = state.started_seconds, state.ended_seconds
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)) if started else ""
    took = f"{(ended or time.time()) - started:,.0f} s" if started else ""
    return state.job_id, state.status, began, took, state.metadata.get("output", "")


if __name__ == "__main__":
    cli.run_module(__file__)
