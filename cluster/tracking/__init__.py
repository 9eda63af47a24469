"""One run in MLflow for each job: what a job records, and the only package that imports mlflow.

    with open_run(TrackingOptions(), name="shakespeare", kind="pipeline", output=folder) as run:
        run.log_settings(settings)
        with run.child("pretrain") as child:
            child.log_metrics({"loss": 2.5}, step=10, tokens=40960)

Every call of a run appends to the journal under OUTPUT/tracking; :mod:`cluster.recording.replay` sends it on.
The output folder is the job's identity: a rerun that resumes the folder takes up the same run.
"""

from cluster.tracking.address import TrackingOptions, page_command, page_line, tracking_uri
from cluster.tracking.prompt_model import download_registered_model, write_prompt_model
from cluster.tracking.runs import open_run, replay, send_rest, sole_job

__all__ = [
    "TrackingOptions",
    "download_registered_model",
    "open_run",
    "page_command",
    "page_line",
    "replay",
    "send_rest",
    "sole_job",
    "tracking_uri",
    "write_prompt_model",
]
