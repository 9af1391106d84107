"""The templates in deployments/: they parse, name each other correctly, and hold no secret."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ferry.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER, KUBERNETES = ROOT / "deployments" / "docker", ROOT / "deployments" / "kubernetes"
POOLS = [DOCKER / "job-template.json", KUBERNETES / "job-template.json"]
SECRET = re.compile(r"AGE-SECRET-KEY-1|AKIA[0-9A-Z]{16}|password\s*[:=]\s*[\"']?[^\s\"'{$]", re.IGNORECASE)


def placeholders(value: Any) -> set[str]:
    """The variables that a job configuration refers to."""
    return set(re.findall(r"\{\{\s*(\w+)\s*\}\}", json.dumps(value)))


def filled(template: dict[str, Any]) -> Any:
    """The job configuration with every variable at its default, as Prefect puts it in: None and absent drop out."""
    defaults = {name: given.get("default") for name, given in template["variables"]["properties"].items()}

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: new for key, old in value.items() if (new := put(old)) is not None}
        if isinstance(value, list):
            return [put(item) for item in value]
        if isinstance(value, str) and (found := re.fullmatch(r"\{\{\s*(\w+)\s*\}\}", value)):
            return defaults[found[1]]
        if isinstance(value, str):
            return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: str(defaults[match[1]]), value)
        return value

    return put(template["job_configuration"])


def documents() -> dict[tuple[str, str], dict[str, Any]]:
    """What the Kubernetes files define, by kind and name."""
    texts = [(KUBERNETES / name).read_text() for name in ("ferry.yaml", "secrets.example.yaml")]
    loaded = [document for text in texts for document in yaml.safe_load_all(text)]
    return {(document["kind"], document["metadata"]["name"]): document for document in loaded}


@pytest.mark.parametrize("path", POOLS, ids=lambda path: path.parent.name)
def test_a_pool_declares_each_variable_that_it_uses(path: Path) -> None:
    """And uses each that it declares; what is preset fits the schema that the form is made of."""
    template = json.loads(path.read_text())
    assert set(template) == {"variables", "job_configuration"}
    properties = template["variables"]["properties"]
    assert placeholders(template["job_configuration"]) == set(properties)
    jsonschema.Draft202012Validator.check_schema(template["variables"])
    defaults = {name: given["default"] for name, given in properties.items() if "default" in given}
    jsonschema.validate(defaults, template["variables"])


def test_pods_find_all_that_they_refer_to() -> None:
    """Every config map, secret and account of a worker's or a run's pod is in the files beside it."""
    defined = documents()
    run = filled(json.loads(POOLS[1].read_text()))["job_manifest"]["spec"]["template"]["spec"]
    worker = defined["Deployment", "ferry-worker"]["spec"]["template"]["spec"]
    for pod in (run, worker):
        assert ("ServiceAccount", pod["serviceAccountName"]) in defined
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in defined
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in defined
        for source in [source for container in pod["containers"] for source in container.get("envFrom", [])]:
            assert ("ConfigMap", source["configMapRef"]["name"]) in defined


def test_pods_run_without_rights() -> None:
    """Not as root, with nothing writable but their disks, and a run without a word to Kubernetes."""
    run = filled(json.loads(POOLS[1].read_text()))["job_manifest"]["spec"]["template"]["spec"]
    worker = documents()["Deployment", "ferry-worker"]["spec"]["template"]["spec"]
    assert run["automountServiceAccountToken"] is False
    for pod in (run, worker):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_a_stop_leaves_time_to_clean_up() -> None:
    """A cancelled run needs up to 30 s; what stops a worker must give it more."""
    run = filled(json.loads(POOLS[1].read_text()))["job_manifest"]["spec"]
    assert run["template"]["spec"]["terminationGracePeriodSeconds"] > 30
    assert run["backoffLimit"] == 0
    assert yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["worker"]["stop_grace_period"] == "2m"


def test_the_settings_in_the_config_map_are_settings() -> None:
    """An example that Ferry would refuse is worse than none."""
    data = documents()["ConfigMap", "ferry-settings"]["data"]["ferry.toml"]
    settings = Settings.model_validate(tomllib.loads(data))
    assert settings.cluster("prod").nodes


def test_the_image_is_made_of_files_that_are_there() -> None:
    """Each COPY finds its sources, which the ignore file lets through; and it does not run as root."""
    text = (DOCKER / "Dockerfile").read_text()
    let_through = {
        line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *sources, _target = line.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert source in let_through
    assert re.search(r"^USER 1000$", text, re.MULTILINE)


def test_the_compose_file_names_what_it_mounts() -> None:
    """Volumes and secrets that services use are declared; nothing is open to other hosts."""
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service["volumes"]:
            name = volume.split(":")[0] if isinstance(volume, str) else volume["source"]
            assert name.startswith("./") or name in compose["volumes"]
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert set(service.get("depends_on", {})) <= set(compose["services"])


@pytest.mark.parametrize(
    "path",
    [path for folder in (DOCKER, KUBERNETES) for path in sorted(folder.iterdir()) if path.is_file()],
    ids=lambda path: path.name,
)
def test_no_template_holds_a_secret(path: Path) -> None:
    """They are files that are mounted, never values that are copied."""
    assert not SECRET.search(path.read_text())
