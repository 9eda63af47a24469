"""Run a job on a running Ray cluster, follow its lines, and end with its exit code."""

from gpt_core.errors import UserError
from jobs import cli

_HELP = """herd submit: run a job on a running Ray cluster, follow its lines, and end with its exit code

usage: herd submit JOB [--config FILE] --cluster.address http://HEAD:8265 [--section.field VALUE ...] [--detach]

  JOB                one of: {jobs}
  --cluster.address  HTTP address of the head (Ray's dashboard); else RAY_API_SERVER_ADDRESS
  --detach           leave the job alone once it is submitted; herd jobs finds it again

All other flags are the job's own: herd JOB --help explains them. They are checked here, before
anything is sent. Code, settings, and small prompt files and a vocabulary inside the current folder
travel with the job; corpora, checkpoints and outputs must lie where every node of the cluster reads them.
A head that asks for a token gets the one in RAY_AUTH_TOKEN or ~/.ray/auth_token.
Ctrl-C asks whether to stop the job or to leave it running.

example
  herd submit tokenize --cluster.address http://127.0.0.1:8265 --input /shared/text --output /shared/corpus"""


def command(argv: list[str]) -> int:
    """Submit the job the words name and return its exit code."""
    from cluster.submission.submitting import submit
    from jobs.command_line.loader import load

    jobs = [job for job in cli.job_names() if _submittable(job)]
    job = argv[0] if argv else ""
    if job in {"--help", "-h"}:
        print(_HELP.format(jobs=", ".join(jobs)))
        return 0
    if job not in jobs:
        found = repr(job) if job else "no job"
        raise UserError("herd submit", found, f"one of {', '.join(jobs)}", "write it first: herd submit JOB ...")
    if "--help" in argv or "-h" in argv:
        return cli.main([job, "--help"])
    words = [word for word in argv[1:] if word != "--detach"]
    settings = load(cli.module_of(job).SETTINGS, words, f"herd submit {job}")
    return submit(job, cli.module_of(job).__name__.rpartition(".")[2], settings, detach="--detach" in argv)


def _submittable(job: str) -> bool:
    """Tell whether a job runs on a cluster: its settings have a cluster section."""
    model = getattr(cli.module_of(job), "SETTINGS", None)
    return model is not None and "cluster" in model.model_fields


if __name__ == "__main__":
    cli.run_module(__file__)
