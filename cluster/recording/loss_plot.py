"""The loss curve of a run as a PNG, drawn from the journal."""

from collections.abc import Iterator
from pathlib import Path

from cluster.recording.journal import Point, Record, Series, points_of, read_all


def read_points(journal: Path, run: str, metrics: tuple[str, ...]) -> dict[str, list[Point]]:
    """Return the points of a run by metric, in order of steps, those of followed journals included.

    Repeated steps count once, and long runs are thinned as for MLflow (see :func:`cluster.recording.journal.stride`).
    """
    series = {metric: Series() for metric in metrics}
    kept: dict[str, list[Point]] = {metric: [] for metric in metrics}
    for record in _metrics_records(journal, run):
        for point in points_of(record):
            if point.metric in series and (taken := series[point.metric].take(point)):
                kept[point.metric].append(taken)
    for metric, one in series.items():
        if last := one.take_held():
            kept[metric].append(last)
    return {metric: sorted(points, key=lambda point: point.step) for metric, points in kept.items() if points}


def _metrics_records(journal: Path, run: str) -> Iterator[Record]:
    for record in read_all(journal):
        if record.get("run") != run:
            continue
        if record["do"] == "metrics":
            yield record
        elif record["do"] == "follow":
            yield from (line for line in read_all(journal.parent / record["path"]) if line.get("do") == "metrics")


def draw_losses(curves: dict[str, list[Point]], title: str, path: Path) -> None:
    """Write a PNG of loss by step, one line a metric; few points are shown as dots as well."""
    # The object interface: pyplot would keep global state and could pick a backend with windows.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for metric, points in curves.items():
        marker = "o" if len(points) <= 50 else None
        steps, values = [point.step for point in points], [point.value for point in points]
        axes.plot(steps, values, label=metric, marker=marker, markersize=3, linewidth=1.2)
    axes.set_title(title)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("cross-entropy (nats a token)")
    axes.grid(visible=True, alpha=0.3)
    if curves:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
