"""The files of docs/deploy: systemd, containers and Kubernetes take them; they fit the settings.

What belongs here: what the page docs/deploying.rst says about one process or container. Proxies are
in test_proxies.py. A program that is not here skips its test; the rest is checked everywhere.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from bridgecore.recovery.timers import NS_PER_SECOND
from bridgecore_cli.settings import SETTINGS, Settings, load
from bridgecore_stores import StoreError, read_keys
from tests.e2e.conftest import Json, ask, environment, eventually, request, running

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
UNIT = DEPLOY / "bridgecore@.service"
# Seconds between the end of a drain and that of the process: closing connections and the store.
AFTER_DRAIN = 5


def said(*command: str, stdin: str | None = None, timeout: float = 30) -> str:
    """What ``command`` writes to standard output; it must succeed."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def drain_of(settings: Settings) -> float:
    return cast(int, settings.core["drain_timeout"]) / NS_PER_SECOND


# ------------------------------------------------------------------ systemd


def test_the_unit_is_valid(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    here = str(Path(sys.executable).with_name("bridgecore"))
    assert "=/opt/bridgecore/bin/bridgecore serve " in UNIT.read_text()
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/bridgecore/bin/bridgecore", here))
    done = subprocess.run(
        [program, "verify", "--man=no", str(copy).replace("@.", "@8080.")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30, check=False,
    )  # fmt: skip
    # Unknown keys are warnings, which do not change the exit code.
    assert (done.returncode, done.stdout) == (0, "")


def test_the_rating_of_the_unit(tmp_path: Path) -> None:
    """As the page says; another version of systemd may rate otherwise."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    page = (ROOT / "docs" / "deploying.rst").read_text()
    (claim,) = re.findall(
        r"``systemd-analyze security`` .* ([\d.]+) of 10 .* systemd (\d+)\)", page
    )
    rating, version = claim
    if said(program, "--version").split()[1] != version:
        pytest.skip(f"systemd-analyze is not that of systemd {version}")
    shutil.copy(UNIT, tmp_path)
    printed = said(program, "security", "--offline=true", "--no-pager", str(tmp_path / UNIT.name))
    assert f" {rating} OK" in printed.splitlines()[-1]


def test_the_unit_fits_the_settings(tmp_path: Path) -> None:
    unit = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    flags = re.findall(r"--([a-z-]+) (\S+)", unit["ExecStart"])
    given = {name.replace("-", "_"): value for name, value in flags}
    assert given == {
        "port": "%i",
        "config": "/etc/bridgecore/bridgecore.toml",
        "cluster_keys": "%d/keys",
    }
    settings = load({**given, "port": "8080", "config": str(DEPLOY / "bridgecore.toml")}, {})
    assert settings.store == f"sqlite:/var/lib/{unit['StateDirectory']}/conversations.db"
    assert settings.upstream is not None
    assert float(unit["TimeoutStopSec"]) >= drain_of(settings) + AFTER_DRAIN
    assert unit["Type"] == "notify"
    assert signal.Signals[unit["KillSignal"]] is signal.SIGTERM
    assert int(unit["LimitNOFILE"]) >= 20_064  # 10,000 sessions
    # Exit codes after which a restart would change nothing.
    assert unit["RestartPreventExitStatus"] == "2 78"


# ------------------------------------------------------------------ containers


def container_tool() -> str:
    """The program that runs containers here, Docker or Podman: what is used of them is the same."""
    for name in ("docker", "podman"):
        program = shutil.which(name)
        if (
            program is not None
            and not subprocess.run(
                [program, "info"], capture_output=True, timeout=30, check=False
            ).returncode
        ):
            return program
    pytest.skip("neither Docker, with its daemon running, nor Podman is here")


def instructions(name: str) -> list[str]:
    """The arguments of each instruction ``name``, with continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name}\s+(.*)$", joined, re.MULTILINE)


def test_the_health_check_of_the_image() -> None:
    """With the Python of the tests, because that is all it needs."""
    (check,) = instructions("HEALTHCHECK")
    python, *arguments = json.loads(check.partition("CMD ")[2])
    assert python == "python"

    def code() -> int:
        environ = environment({"BRIDGECORE_PORT": str(bridge.port)})
        command = [sys.executable, "-W", "error", *arguments]
        return subprocess.run(
            command, env=environ, stderr=subprocess.DEVNULL, timeout=20, check=False
        ).returncode

    with running("--upstream", "ws://127.0.0.1:9/") as bridge:
        assert code() == 0
        bridge.popen.kill()
        bridge.popen.wait(20)
        assert code() == 1


def test_the_image_is_made_of_files_that_exist() -> None:
    copied = [line.split()[:-1] for line in instructions("COPY") if "--from" not in line]
    assert [name for names in copied for name in names if not (ROOT / name).exists()] == []
    # Exec form, so that signals reach the process; a number, so that Kubernetes sees who runs it.
    assert [json.loads(line) for line in instructions("ENTRYPOINT")] == [["bridgecore"]]
    assert instructions("USER") == ["10001:10001"]


@pytest.mark.timeout(900)  # it downloads and installs
def test_the_image_runs() -> None:
    tool = container_tool()
    base = instructions("FROM")[-1]
    is_here = subprocess.run([tool, "image", "inspect", base], capture_output=True, check=False)
    if is_here.returncode:
        pulled = subprocess.run([tool, "pull", base], capture_output=True, check=False)
        if pulled.returncode:
            pytest.skip(f"the image {base} cannot be had here")
    tried = subprocess.run([tool, "run", "--rm", base, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"{tool} cannot run containers here")
    image = said(tool, "build", "-q", "-f", str(DEPLOY / "Dockerfile"), str(ROOT), timeout=800)
    container = said(tool, "run", "-d", "-p", "127.0.0.1::8080", image)
    try:
        port = int(said(tool, "port", container, "8080").rpartition(":")[2])

        def is_ready() -> bool:
            try:
                return ask(port, request("GET", "/readyz")).status == 200
            except (OSError, EOFError):
                return False

        eventually(is_ready)
        said(tool, "stop", "-t", "45", container, timeout=60)
        state = said(tool, "inspect", "-f", "{{.State.ExitCode}} {{.Config.User}}", container)
        assert state == "0 10001:10001"
    finally:
        said(tool, "rm", "-f", container)


# ------------------------------------------------------------------ Kubernetes

KUBERNETES: dict[tuple[str, str], Json] = {
    (document["kind"], document["metadata"]["name"]): document
    for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
}
SECRET = KUBERNETES["Secret", "bridgecore"]["stringData"]
DEPLOYMENT = KUBERNETES["Deployment", "bridgecore"]
POD: Json = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER: Json = POD["containers"][0]


def variables() -> dict[str, str]:
    """The environment of the container, as Kubernetes makes it."""
    found = {"POD_IP": "10.0.0.7"}
    for variable in CONTAINER["env"]:
        source = variable.get("valueFrom", {})
        if "value" in variable:
            found[variable["name"]] = variable["value"].replace("$(POD_IP)", found["POD_IP"])
        elif "secretKeyRef" in source:
            found[variable["name"]] = SECRET[source["secretKeyRef"]["key"]]
    return found


def test_the_settings_of_the_pods_are_valid() -> None:
    environ = variables()
    known = {setting.variable for setting in SETTINGS}
    assert {name for name in environ if name != "POD_IP"} <= known
    settings = load({}, environ)
    assert (settings.host, settings.port) == ("0.0.0.0", CONTAINER["ports"][0]["containerPort"])
    assert settings.store.startswith("postgresql://")
    (waiting,) = {CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1]}
    grace = POD["terminationGracePeriodSeconds"]
    assert grace >= float(waiting) + drain_of(settings) + AFTER_DRAIN
    assert POD["enableServiceLinks"] is False
    (forward,) = [port for port in CONTAINER["ports"] if port["name"] == "forward"]
    assert str(settings.advertise) == f"http://10.0.0.7:{forward['containerPort']}"


def test_the_pods_can_read_their_keys_and_nobody_else() -> None:
    """A file of root that only the group of the process can read: see ``read_secrets``."""
    (volume,) = POD["volumes"]
    (mount,) = CONTAINER["volumeMounts"]
    (item,) = volume["secret"]["items"]
    assert volume["secret"]["defaultMode"] == 0o440
    assert POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsGroup"]
    assert volume["name"] == mount["name"]
    assert f"{mount['mountPath']}/{item['path']}" == variables()["BRIDGECORE_CLUSTER_KEYS"]
    assert SECRET.keys() == {item["key"], "store"}


def test_the_key_that_has_to_be_replaced_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").touch(mode=0o600)
    (tmp_path / "keys").write_text(SECRET["keys"])
    with pytest.raises(StoreError, match="must have at least 32 characters"):
        read_keys(tmp_path / "keys")


def test_the_manifests_name_each_other() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    for kind, name in KUBERNETES:
        spec = KUBERNETES[kind, name].get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector") or {"matchLabels": labels}
        assert selector.get("matchLabels", selector) == labels, (kind, name)
    ports = {port["name"] for port in CONTAINER["ports"]}
    services = [KUBERNETES[key] for key in KUBERNETES if key[0] == "Service"]
    assert {port["targetPort"] for each in services for port in each["spec"]["ports"]} == ports
    probes = {name: CONTAINER[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert [probe["path"] for probe in probes.values()] == ["/readyz", "/livez"]


def missing(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where ``theirs`` lacks something of ``ours``."""
    if isinstance(ours, Mapping):
        inner = theirs if isinstance(theirs, Mapping) else {}
        return [
            path
            for name, value in ours.items()
            for path in missing(value, inner.get(name), f"{where}.{name}")
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) <= len(theirs):
        pairs = zip(ours, theirs, strict=False)
        return [path for one, other in pairs for path in missing(one, other, f"{where}[]")]
    return [] if ours == theirs else [where]


def test_kubectl_knows_each_field_of_the_deployment() -> None:
    """Without a cluster: what kubectl reads and writes again lacks the fields that it does not
    know."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    given = json.dumps(DEPLOYMENT)
    read = said(kubectl, "set", "env", "--local", "-f", "-", "-o", "json", "A=b", stdin=given)
    assert missing(DEPLOYMENT, json.loads(read)) == []
