"""The Kubernetes example: what it names exists, and is the same on both sides of every name."""

import re
from pathlib import Path

import pytest
import yaml

from guardkeel.moderation.config import read_config

FOLDER = Path(__file__).parents[2] / "examples" / "serve"


@pytest.fixture(scope="module")
def made():
    found = {d["kind"]: d for d in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8"))}
    assert set(found) == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    return found


def test_everything_selects_the_deployments_pods(made):
    spec = made["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    selectors = [spec["selector"]["matchLabels"], made["Service"]["spec"]["selector"]]
    selectors.append(made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"])
    assert all(one == labels for one in selectors)
    target = made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", made["Deployment"]["metadata"]["name"])
    assert made["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == spec["replicas"] == 2


def test_the_pod_has_what_the_configuration_names(made):
    config = read_config(FOLDER / "moderation.toml")
    pod = made["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert container["args"] == ["guardkeel", "serve", "--config", f"{mounts['settings']}/moderation.toml"]
    sources = volumes["settings"]["projected"]["sources"]
    secret = next(s["secret"] for s in sources if "secret" in s)
    assert [i["path"] for i in secret["items"]] == [config.server.keys]
    env = {e["name"]: e for e in container["env"]}
    assert env[config.store.url_env]["valueFrom"]["secretKeyRef"]["name"] == secret["name"]
    assert env["GUARDKEEL_CACHE"]["value"].startswith(mounts["cache"])
    assert container["ports"] == [{"name": "http", "containerPort": config.server.port}]
    assert made["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    grace = config.server.drain_seconds + config.server.shutdown_seconds
    assert pod["terminationGracePeriodSeconds"] > grace
    assert "useradd" in (FOLDER / "Dockerfile").read_text() and pod["securityContext"]["runAsUser"] == 1000


def test_probes_are_routes(made):
    pytest.importorskip("fastapi", reason="the serve extra is not installed")
    from guardkeel.moderation.routes_health import router

    paths = {route.path for route in router.routes}
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    probes = {
        kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("readiness", "liveness", "startup")
    }
    assert probes == {"readiness": "/readyz", "liveness": "/healthz", "startup": "/healthz"}
    assert set(probes.values()) <= paths


def test_the_comment_says_what_must_be_there(made):
    """The commands at the top make every ConfigMap and Secret that the pod takes, by their names and keys."""
    head = (FOLDER / "kubernetes.yaml").read_text("utf-8").split("apiVersion")[0]
    assert re.search(r"create configmap guardkeel --from-file=\S*moderation\.toml", head)
    assert re.search(r"create secret generic guardkeel --from-file=keys\.json", head)
    assert "--from-literal=DATABASE_URL=" in head
