"""The manifests against Kubernetes' own schemas, and against each other."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy import boards

FOLDER = boards.DEPLOY / "kubernetes"
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
LARGEST_APPLIED = 256 * 1024  # `kubectl apply` copies an object into an annotation, and those end here

Manifest = dict[str, Any]


def _read(name: str) -> Manifest:
    found: Manifest = yaml.safe_load((FOLDER / name).read_text())
    return found


def _written() -> list[Path]:
    """All manifests but kustomize's own files and patches."""
    return [p for p in sorted(FOLDER.glob("*/*.yaml")) if p.name not in ("kustomization.yaml", "patch.yaml")]


def _rendered(variant: str) -> list[Manifest]:
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here to render the kustomization")
    done = subprocess.run(["kubectl", "kustomize", FOLDER / variant], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _check(manifest: Manifest) -> None:
    """Unknown fields are errors. Resources of the Prometheus operator have no schema here."""
    if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
        return
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def _container(deployment: Manifest) -> Manifest:
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("path", _written(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_schema(path: Path) -> None:
    _check(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("variant", ["server", "gpu", "monitoring"])
def test_schema_of_what_kustomize_makes(variant: str) -> None:
    for manifest in _rendered(variant):
        _check(manifest)


def test_the_schemas_find_mistakes() -> None:
    deployment = _read("server/deployment.yaml")
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        _check(deployment)


def test_service_finds_the_pods() -> None:
    service, deployment = _read("server/service.yaml"), _read("server/deployment.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["ports"][0]["targetPort"] in {port["name"] for port in _container(deployment)["ports"]}


def test_probes_ask_for_health_on_the_port_of_the_server() -> None:
    container = _container(_read("server/deployment.yaml"))
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": container["ports"][0]["name"]}


def test_user_is_that_of_the_images() -> None:
    uid = _read("server/deployment.yaml")["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    for name in ("Dockerfile", "Dockerfile.cpu"):
        assert f"--uid {uid} " in (boards.DEPLOY.parent / name).read_text()


def test_monitor_finds_the_service() -> None:
    monitor, service = _read("monitoring/service-monitor.yaml"), _read("server/service.yaml")
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["spec"]["jobLabel"] in labels
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_gpu_variant_asks_for_a_gpu_and_keeps_the_rest() -> None:
    found = {manifest["kind"]: manifest for manifest in _rendered("gpu")}
    container = _container(found["Deployment"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["startupProbe"] == _container(_read("server/deployment.yaml"))["startupProbe"]
    volumes = {v["name"]: v for v in found["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    claim = {"claimName": found["PersistentVolumeClaim"]["metadata"]["name"]}
    assert volumes["cache"] == {"name": "cache", "persistentVolumeClaim": claim}


def test_dashboards_are_config_maps() -> None:
    maps = [manifest for manifest in _rendered("monitoring") if manifest["kind"] == "ConfigMap"]
    shipped = {path.name: path.read_text("utf-8") for path in boards.PATHS}
    assert {name: text for manifest in maps for name, text in manifest["data"].items()} == shipped
    assert all(len(text.encode()) < LARGEST_APPLIED for text in shipped.values())
