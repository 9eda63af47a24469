"""Ray Train's trainer, without actors of its own that do nothing for a training run here."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback


class OwnTrainer(TorchTrainer):
    """Starts neither the actor that deals out Ray Data's datasets, nor where it is of no use the one that cleans up.

    There are no such datasets: workers read the corpus themselves. The other one frees a lost controller's CPUs. It
    asks the dashboard's server, which a job's own Ray does not have; there it would see nothing, and at the end be
    waited for until its question times out after ten seconds. That Ray ends with the job in any case.
    """

    def _create_default_callbacks(self) -> list[Any]:
        from ray._private.worker import global_worker

        unused: tuple[type, ...] = (DatasetsCallback,)
        if global_worker.node is None or global_worker.node.webui_url is None:
            unused += (PlacementGroupCleanerCallback,)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]
