"""The dashboard asks for metrics that there are: ours by the code that makes them, Ray's by its own dashboards."""

import ast
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "cluster" / "grafana.json").read_text())
METRIC = re.compile(r"\b(?:ray|autoscaler)_[a-z0-9_]+")
# What Ray's exporter appends to the names of each kind.
SUFFIXES = {"Gauge": [""], "Counter": ["_total"], "Histogram": ["_bucket", "_sum", "_count"]}


def our_metrics() -> set[str]:
    names = set()
    importing = re.compile(r"from ray\.(util|serve)\.metrics import")
    makers = [path for path in (ROOT / "cluster").rglob("*.py") if importing.search(path.read_text())]
    for path in makers:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in SUFFIXES:
                (name, *_) = call.args
                assert isinstance(name, ast.Constant)
                names |= {f"ray_{name.value}{suffix}" for suffix in SUFFIXES[call.func.id]}
    return names


def rays_metrics() -> set[str]:
    spec = find_spec("ray.dashboard.modules.metrics")
    assert spec is not None
    assert spec.origin is not None
    panels = (Path(spec.origin).parent / "dashboards").glob("*_panels.py")
    return {name for path in panels for name in METRIC.findall(path.read_text())}


def charts() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for panel in charts():
        yield from (target["expr"] for target in panel["targets"])
    yield from (one["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query")


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert asked - our_metrics() - rays_metrics() == set()


def test_every_metric_of_ours_is_shown() -> None:
    shown = {name for expression in expressions() for name in METRIC.findall(expression)}
    for name in {re.sub(r"_(bucket|sum|count)$", "", name) for name in our_metrics()}:
        assert any(one.startswith(name) for one in shown), name


@pytest.mark.parametrize("expression", sorted(expressions()))
def test_an_expression_has_its_brackets_and_asks_for_something(expression: str) -> None:
    assert METRIC.search(expression)
    for left, right in ("()", "[]", "{}"):
        assert expression.count(left) == expression.count(right)
    variables = set(re.findall(r"\$(\w+)", expression))
    assert variables <= {one["name"] for one in DASHBOARD["templating"]["list"]}


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (column, line)
            for column in range(place["x"], place["x"] + place["w"])
            for line in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells
        assert place["x"] + place["w"] <= 24
        taken |= cells
