"""compose.yaml against the schema of the Compose specification, and its parts against each other."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.boards import DEPLOY

ROOT = DEPLOY.parent
FILES = [ROOT / "compose.yaml", DEPLOY / "compose.gpu.yaml"]


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = _read(FILES[0])["services"]
    return found


def _mounts(service: dict[str, Any]) -> dict[str, Path]:
    """Folders of the repository by their path inside."""
    pairs = [mount.split(":")[:2] for mount in service["volumes"]]
    return {inside: ROOT / outside for outside, inside in pairs if outside.startswith("./")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_schema(path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_itself_takes_both_files() -> None:
    compose = ["docker", "compose"]
    if not shutil.which("docker") or subprocess.run([*compose, "version"], capture_output=True).returncode:
        pytest.skip("no docker compose here")
    files = [part for path in FILES for part in ("-f", str(path))]
    done = subprocess.run([*compose, *files, "config", "--quiet"], env={"MODEL": "m"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_images_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        assert service["image"].split(":")[1] not in ("", "latest")


def test_mounted_folders_and_dockerfiles_exist(services: dict[str, dict[str, Any]]) -> None:
    for name in ("prometheus", "grafana"):
        mounts = _mounts(services[name])
        assert mounts and all(folder.is_dir() for folder in mounts.values())
    builds = [_read(path)["services"]["server"]["build"] for path in FILES]
    assert all((ROOT / build["dockerfile"]).is_file() for build in builds)


def test_prometheus_finds_its_configuration_and_the_server(services: dict[str, dict[str, Any]]) -> None:
    (flag,) = (c for c in services["prometheus"]["command"] if c.startswith("--config.file="))
    folder, name = flag.removeprefix("--config.file=").rsplit("/", 1)
    config = _read(_mounts(services["prometheus"])[folder] / name)
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert services[service]["ports"][0].endswith(f":{port}")


def test_grafana_finds_prometheus_and_the_dashboards(services: dict[str, dict[str, Any]]) -> None:
    mounts = _mounts(services["grafana"])
    (source,) = _read(mounts["/etc/grafana/provisioning"] / "datasources" / "prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert (
        source["jsonData"]["timeInterval"]
        == _read(DEPLOY / "prometheus" / "prometheus.yaml")["global"]["scrape_interval"]
    )
    (provider,) = _read(mounts["/etc/grafana/provisioning"] / "dashboards" / "kvserve.yaml")["providers"]
    assert sorted(mounts[provider["options"]["path"]].glob("*.json"))
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (mounts[str(home.parent)] / home.name).is_file()
