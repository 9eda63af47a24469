"""A training run's numbers for Prometheus, through Ray's own exporter on the node of rank 0.

For watching a cluster (``cluster/grafana.json``); the record of a run is its journal. All begin with ``herd_train_``.
"""

from collections.abc import Mapping

from ray.util.metrics import Gauge


class TrainingGauges:
    """The newest value of what a run logs."""

    def __init__(self) -> None:
        self._step = Gauge("herd_train_step", "Optimizer steps done.")
        self._gauges = {
            "loss": Gauge("herd_train_loss", "Loss of the newest step, nats a token."),
            "validation_loss": Gauge("herd_train_validation_loss", "Newest held-out loss, nats a token."),
            "grad_norm": Gauge("herd_train_grad_norm", "Gradient norm before clipping."),
            "tokens_per_second": Gauge("herd_train_tokens_per_second", "Tokens a second of all workers together."),
            "data_wait_share": Gauge("herd_train_data_wait_share", "Share of a step spent waiting for its tokens."),
        }

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step; those without a gauge are left out."""
        self._step.set(step)
        for name, gauge in self._gauges.items():
            if name in metrics:
                gauge.set(metrics[name])
