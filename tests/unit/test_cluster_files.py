"""The cluster's own files: ray_config.yaml, the KubeRay manifests, the Serve config and the Dockerfile."""

import copy
import importlib
import re
import shutil
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt_core.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "cluster" / "kubernetes").glob("*.yaml"))
RAY_VERSION = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
# AWS's published sizes of the instance types in use: vCPUs and GPUs.
INSTANCES = {"m7i.xlarge": (4, 0), "c7i.4xlarge": (16, 0), "g6.12xlarge": (48, 4)}
# Fields of the ray.io/v1 API that are in use, from its reference.
RAY_CLUSTER_FIELDS = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
}  # fmt: skip
RAY_JOB_FIELDS = {
    "entrypoint", "submissionMode", "runtimeEnvYAML", "backoffLimit", "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished", "rayClusterSpec",
}  # fmt: skip
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


# --- ray up


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "ray_config.yaml").read_text())


def mistakes_in(config: dict[str, Any]) -> list[str]:
    """Return what Ray's own validation lets through and a cluster would stumble over."""
    mistakes = [f"no {name}" for name in ("cluster_name", "provider", "auth", "head_node_type") if not config.get(name)]
    types = config.get("available_node_types", {})
    if config.get("head_node_type") not in types:
        mistakes.append("head_node_type is no node type")
    for name, node in types.items():
        mistakes += [
            f"{name}: no {key}" for key in ("InstanceType", "ImageId") if key not in node.get("node_config", {})
        ]
        if node.get("min_workers", 0) > node.get("max_workers", config.get("max_workers", 0)):
            mistakes.append(f"{name}: min_workers above max_workers")
        cpus, gpus = INSTANCES.get(node.get("node_config", {}).get("InstanceType"), (0, 0))
        if node.get("resources", {}).get("CPU", 0) > cpus or node.get("resources", {}).get("GPU", 0) > gpus:
            mistakes.append(f"{name}: resources its instance type does not have")
    if sum(node.get("min_workers", 0) for node in types.values()) > config.get("max_workers", 0):
        mistakes.append("min_workers of all groups above max_workers")
    commands = [*config.get("setup_commands", ()), *config.get("head_start_ray_commands", ())]
    mistakes += [
        f"no command with {text}" for text in ("constraints.txt", "--autoscaling-config") if text not in str(commands)
    ]
    return mistakes


def test_ray_itself_accepts_the_cluster_file(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


def test_the_cluster_file_has_no_mistake_that_ray_does_not_see(config):
    assert mistakes_in(config) == []


@pytest.mark.parametrize(
    ("path", "value", "mistake"),
    [
        (("cluster_name",), "", "no cluster_name"),
        (("head_node_type",), "heads", "head_node_type is no node type"),
        (("available_node_types", "gpu", "node_config"), {}, "gpu: no InstanceType"),
        (("available_node_types", "text", "min_workers"), 17, "text: min_workers above max_workers"),
        (("available_node_types", "gpu", "resources"), {"GPU": 8}, "gpu: resources its instance type does not have"),
        (("setup_commands",), ["pip install ray"], "no command with constraints.txt"),
    ],
)
def test_each_such_mistake_would_be_found(config, path, value, mistake):
    inner = config
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert mistake in mistakes_in(config)


def test_groups_scale_to_zero_on_spot_nodes_and_the_head_does_no_work(config):
    groups = config["available_node_types"]
    head = groups.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    assert all(group["min_workers"] == 0 for group in groups.values())
    assert all(group["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot" for group in groups.values())
    assert {bool(group["resources"].get("GPU")) for group in groups.values()} == {True, False}
    assert 0 < config["idle_timeout_minutes"] <= 30


def mounted(config: dict[str, Any]) -> list[str]:
    """Return what the cluster file takes along from the checkout."""
    return [place for place in config["file_mounts"].values() if not place.startswith("~")]


def test_everything_the_cluster_file_takes_along_is_there(config):
    places = {"pyproject.toml", "README.md", "constraints.txt", "jobs", "cluster", "gpt_core"}
    assert places == set(mounted(config))
    assert all(config["file_mounts"][f"~/gpt-herd/{place}"] == place for place in places)
    assert all((ROOT / place).exists() for place in places)


def test_nothing_of_the_head_listens_to_the_world_and_the_token_is_asked_for(config):
    commands = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
    assert "mlflow server --host 127.0.0.1" in commands
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [command for command in config[name] if "ray start" in command]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)


# --- Kubernetes


def documents() -> list[dict[str, Any]]:
    return [document for file in MANIFESTS for document in yaml.safe_load_all(file.read_text())]


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents() if document["kind"] == kind]
    return found


def clusters() -> dict[str, dict[str, Any]]:
    return {
        "RayCluster": of_kind("RayCluster")["spec"],
        "RayJob": of_kind("RayJob")["spec"]["rayClusterSpec"],
        "RayService": of_kind("RayService")["spec"]["rayClusterConfig"],
    }


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, cluster in clusters().items():
        yield f"{kind} head", cluster["headGroupSpec"]["template"]["spec"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{kind} {group['groupName']}", group["template"]["spec"]
    yield "MLflow", of_kind("Deployment")["spec"]["template"]["spec"]


def test_there_is_a_manifest_for_each_way_to_run_and_for_what_they_share():
    kinds = sorted((document["apiVersion"], document["kind"]) for document in documents())
    assert kinds == [
        ("apps/v1", "Deployment"),
        ("ray.io/v1", "RayCluster"),
        ("ray.io/v1", "RayJob"),
        ("ray.io/v1", "RayService"),
        ("v1", "PersistentVolumeClaim"),
        ("v1", "PersistentVolumeClaim"),
        ("v1", "Service"),
    ]
    names = [document["metadata"]["name"] for document in documents()]
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) and len(name) < 48 for name in names)


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService"])
def test_a_manifest_has_only_fields_kuberay_knows_and_all_it_needs(kind):
    cluster = clusters()[kind]
    assert set(cluster) <= RAY_CLUSTER_FIELDS
    assert {"headGroupSpec", "workerGroupSpecs", "rayVersion"} <= set(cluster)
    assert set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    for group in cluster["workerGroupSpecs"]:
        assert set(group) == GROUP_FIELDS
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    parameters = [
        cluster["headGroupSpec"]["rayStartParams"],
        *(g["rayStartParams"] for g in cluster["workerGroupSpecs"]),
    ]
    assert all(isinstance(value, str) for group in parameters for value in group.values())


def test_the_manifests_run_the_pinned_ray_and_ask_for_a_token():
    assert RAY_VERSION
    for cluster in clusters().values():
        assert cluster["rayVersion"] == RAY_VERSION.group(1)
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize(("name", "pod"), list(pods()), ids=[name for name, _ in pods()])
def test_each_pod_is_whole(name, pod):
    (container,) = pod["containers"]
    assert container["image"] in {"gpt-herd:cpu", "gpt-herd:cuda"}
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert pod["securityContext"]["runAsNonRoot"] is True
    resources = container["resources"]
    assert "memory" in resources["limits"]
    # Ray's groups get what they ask for: the autoscaler counts requests, Ray counts limits.
    if name.split()[-1] in {"text", "gpu"}:
        assert resources["requests"] == resources["limits"]
        assert all(isinstance(value, str) for value in resources["limits"].values())
        assert ("nvidia.com/gpu" in resources["limits"]) == name.endswith("gpu") == container["image"].endswith("cuda")


def test_whatever_a_pod_refers_to_is_made_by_a_manifest_or_by_a_command_in_its_header():
    made = {document["metadata"]["name"] for document in documents()}
    for file in MANIFESTS:
        text = file.read_text()
        commands = set(re.findall(r"^#.*kubectl create (?:configmap|secret generic) (\S+)", text, re.MULTILINE))
        referred = re.findall(r"claimName: ([\w-]+)|configMap: \{name: ([\w-]+)|secretKeyRef: \{name: ([\w-]+)", text)
        assert {name for names in referred for name in names if name} <= made | commands


def test_the_job_runs_a_module_that_is_there():
    spec = of_kind("RayJob")["spec"]
    assert set(spec) <= RAY_JOB_FIELDS
    module = re.match(r"python -m ([\w.]+) ", spec["entrypoint"])
    assert module
    assert (ROOT / module.group(1).replace(".", "/")).with_suffix(".py").exists()
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"


# --- Ray Serve


@pytest.mark.parametrize("name", ["serve_config.yaml", "ray_service.yaml"])
def test_ray_serve_accepts_the_application_and_herd_its_settings(name):
    from ray.serve.schema import ServeDeploySchema

    if name == "ray_service.yaml":
        values = yaml.safe_load(of_kind("RayService")["spec"]["serveConfigV2"])
    else:
        values = yaml.safe_load((ROOT / "cluster" / name).read_text())
    (application,) = ServeDeploySchema.model_validate(values).applications
    module, _, function = application.import_path.partition(":")
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    assert f"def {function}(" in source
    settings = ServeSettings.model_validate(application.args)
    listens = values.get("http_options", {}).get("host", "0.0.0.0" if name == "ray_service.yaml" else "127.0.0.1")
    assert settings.host == listens


# --- the image


def copied() -> list[str]:
    """Return what the Dockerfile copies from the checkout."""
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    return [word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()[:-1]]


def test_the_image_installs_the_pinned_versions_and_runs_as_nobody_special():
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    assert {"constraints.txt", "pyproject.toml", "README.md", "jobs", "cluster", "gpt_core"} == set(copied())
    assert all((ROOT / word).exists() for word in copied())
    assert len(re.findall(r"pip install .*-c constraints.txt", text)) == len(re.findall(r"pip install", text)) == 2
    assert re.findall(r"^ARG (\w+)", text, re.MULTILINE) == ["BASE", "TORCH_INDEX", "TORCH", "EXTRAS"]
    assert re.search(r"^USER ray$", text, re.MULTILINE)


# --- what gets to either is enough to install the project


@pytest.mark.parametrize("taken", ["by the image", "by the cluster file"])
def test_what_is_taken_along_builds_a_wheel_with_code_configs_and_page(taken, config, tmp_path, monkeypatch):
    for place in copied() if taken == "by the image" else mounted(config):
        if (ROOT / place).is_dir():
            shutil.copytree(ROOT / place, tmp_path / place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / place, tmp_path / place)
    monkeypatch.chdir(tmp_path)
    backend = tomllib.loads(Path("pyproject.toml").read_text())["build-system"]["build-backend"]
    wheel = importlib.import_module(backend).build_wheel("dist")
    with zipfile.ZipFile(tmp_path / "dist" / wheel) as built:
        names = built.namelist()
    assert {"jobs/cli.py", "jobs/configs/quickstart.yaml", "cluster/session.py", "gpt_core/settings/base.py"} <= {
        *names
    }
    assert any(name.endswith(".html") for name in names)
    native = (ROOT / "gpt_core" / "generation" / "native").iterdir()
    assert {f"gpt_core/generation/native/{file.name}" for file in native} <= {*names}
