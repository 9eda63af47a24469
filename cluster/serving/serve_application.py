"""The served model as a Ray Serve application, for ``serve deploy`` and KubeRay's RayService."""

import sys
from typing import Any

from cluster.serving.application import require_http
from cluster.serving.deployment import generator_deployment, with_settled_precision
from cluster.serving.http_guard import access_for
from cluster.serving.ingress import ingress_deployment
from cluster.session import Cluster
from gpt_core.settings import ServeSettings


def build(args: dict[str, Any]) -> Any:
    """Return the application of ``cluster/serve_config.yaml``; `args` are the settings of `herd serve`.

    Raises:
        ValidationError: A setting is unknown or of the wrong kind.
        CheckpointError: There is no whole checkpoint.
        ResourceError: Ray Serve runs without HTTP; the host is not loopback and HERD_API_KEY is not set on this node.
    """
    import ray

    from cluster.serving import service

    settings = ServeSettings.model_validate(args)
    # Nodes may still be on their way: what a replica needs is asked of Ray, not counted here.
    gpus = int(ray.cluster_resources().get("GPU", 0)) if settings.engine.device == "auto" else 0
    everything = Cluster("auto", sys.maxsize, gpus)
    require_http("serve deploy", everything)
    served = service.resolve(settings)
    engine = with_settled_precision(settings.engine, everything)
    settings = settings.model_copy(update={"engine": engine})
    generator = generator_deployment(served.checkpoint, engine, everything)
    return ingress_deployment(generator, served.facts, settings, access_for(settings.host), listens=False)
