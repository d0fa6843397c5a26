"""deploy/: what Kubernetes takes, and what a server of ours does with it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from deepsched.advice import Replicas
from deepsched.cli.program import build_parser

yaml = pytest.importorskip("yaml")

pytestmark = pytest.mark.server

FOLDER = Path(__file__).parent.parent.parent / "deploy"
MANIFESTS = {
    f"{path.stem}-{document['metadata']['name']}-{document['kind']}": document
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
    if "kind" in document
}


def containers(manifest):
    spec = manifest["spec"]
    return spec.get("containers") or spec.get("template", {}).get("spec", {}).get("containers", [])


def text_of(url):
    with urllib.request.urlopen(url) as response:
        return response.read().decode()


@pytest.mark.parametrize(
    "name", [name for name in MANIFESTS if "kserve.io" not in MANIFESTS[name]["apiVersion"]]
)
def test_kubernetes_own_schemas_accept_the_manifests(name):
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(MANIFESTS[name], validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", [name for name in MANIFESTS if containers(MANIFESTS[name])])
def test_containers_are_started_with_options_that_there_are(name):
    entry_point = json.loads(re.search(r"^ENTRYPOINT (.*)", dockerfile(), re.M)[1])
    assert entry_point[:2] == ["deepsched", "serve"]
    for container in containers(MANIFESTS[name]):
        args = [argument.replace("{{.Name}}", "resnet") for argument in container["args"]]
        parsed = build_parser(["serve"]).parse_args([*entry_point[1:], *args])
        assert parsed.host == "0.0.0.0"
        ports = {port["containerPort"] for port in container["ports"]}
        assert ports <= {8000, 8001}


@pytest.mark.parametrize("num_streams", [1, 2, 4])
def test_the_lines_that_advise_prints_are_yaml_whose_arguments_the_server_takes(num_streams):
    lines = Replicas("Kubernetes", 3, 4, num_streams, 20.0, 0.7).kubernetes_lines()
    manifest = yaml.safe_load(lines)
    assert manifest["spec"]["replicas"] == 3
    (container,) = containers(manifest)
    parsed = build_parser(["serve"]).parse_args(["serve", *container["args"]])
    assert parsed.num_streams == (2 if num_streams == 2 else None)
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"cpu": "4"}


def test_probes_ask_for_what_a_server_answers(server):
    paths = {
        container[probe]["httpGet"]["path"]
        for manifest in MANIFESTS.values()
        for container in containers(manifest)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert paths == {"/v2/health/live", "/v2/health/ready"}
    for path in paths:
        text_of(f"http://{server.http}{path}")


def test_a_pod_starts_though_one_of_its_models_cannot_be_opened():
    (container,) = containers(MANIFESTS["deployment-deepsched-Deployment"])
    assert container["startupProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"


def test_the_autoscaler_s_metric_is_made_of_one_that_there_is(server):
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    (metric,) = MANIFESTS["hpa-deepsched-HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    series = rule["seriesQuery"].partition("{")[0]
    assert f"\n{series}{{" in text_of(f"http://{server.http}/metrics")


def test_the_image_s_health_check_tells_a_server_from_none(server):
    command = json.loads(re.search(r"HEALTHCHECK .*?(\[[^\n]*\])", dockerfile(), re.S)[1])
    assert command[0] == "python"
    for address, works in ((server.http, True), ("127.0.0.1:9", False)):
        script = command[2].replace("127.0.0.1:8000", address)
        found = subprocess.run([sys.executable, command[1], script], capture_output=True)
        assert (found.returncode == 0) == works


def test_the_image_has_no_root_and_keeps_its_cache_where_it_may_write():
    text = dockerfile()
    assert re.search(r"^USER 10001", text, re.M)
    folder = re.search(r"^ENV DEEPSCHED_CACHE_DIR=(\S+)", text, re.M)[1]
    made = next(line for line in text.splitlines() if "install -d" in line)
    assert folder in shlex.split(made.replace("&&", ""))


def dockerfile():
    return (FOLDER / "Dockerfile").read_text()
