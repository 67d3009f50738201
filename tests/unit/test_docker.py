"""docker/: no engine is needed to see that the files are well formed and agree with the settings."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from eventproc.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker" / "compose.yaml"
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
OURS = ("supervisor", "api")


def run(tool: str, *arguments: str) -> None:
    path = Path(sys.executable).with_name(tool)
    found = subprocess.run([path, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s", text)
    assert match is not None, text
    return int(match[1])


def settings_of(service: str) -> Settings:
    """What the service's environment says, read as eventproc reads it."""
    in_image = dict(re.findall(r"EVENTPROC_(\w+)=(\S+)", DOCKERFILE))
    given = {
        name.removeprefix("EVENTPROC_"): value for name, value in SERVICES[service]["environment"].items()
    }
    return Settings.model_validate({name.lower(): value for name, value in (in_image | given).items()})


def test_compose_is_by_its_schema() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE))


def test_the_dockerfile_is_clean() -> None:
    run("hadolint", "docker/Dockerfile")


def test_the_image_has_no_compiler_and_does_not_run_as_root() -> None:
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert "gcc" not in last
    assert re.search(r"^USER [1-9]\d*$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last


def test_what_is_copied_is_let_through_by_dockerignore() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    let_through = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for name in line.split()[:-1]
    }
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)
    assert any(fnmatch("eventproc/_reorder.so", line) or line == "**/*.so" for line in lines)


@pytest.mark.parametrize("service", OURS)
class TestOurServices:
    def test_the_drain_fits_into_the_grace(self, service: str) -> None:
        grace_s = seconds(SERVICES[service]["stop_grace_period"])
        assert grace_s >= settings_of(service).shutdown_timeout_s + 10

    def test_it_waits_for_servers_that_answer(self, service: str) -> None:
        waits = SERVICES[service]["depends_on"]
        assert set(waits) == {"kafka", "redis"}
        for server, how in waits.items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[server]

    def test_its_addresses_are_those_of_the_services(self, service: str) -> None:
        settings = settings_of(service)
        advertised = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
        assert advertised == f"PLAINTEXT://{settings.kafka_bootstrap_servers}"
        assert settings.redis_url.get_secret_value() == "redis://redis:6379/0"

    def test_only_this_machine_reaches_it_and_by_the_right_port(self, service: str) -> None:
        settings = settings_of(service)
        port = {"supervisor": settings.monitor_port, "api": settings.api_port}[service]
        assert SERVICES[service]["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert f"EXPOSE {settings.api_port} {settings.monitor_port}" in DOCKERFILE
        host = {"supervisor": settings.monitor_host, "api": settings.api_host}[service]
        assert host == "0.0.0.0"

    def test_its_health_is_asked_for_at_that_port(self, service: str) -> None:
        settings = settings_of(service)
        if service == "api":
            assert f":{settings.api_port}/ready" in str(SERVICES[service]["healthcheck"]["test"])
        else:
            assert f":{settings.monitor_port}/readyz" in DOCKERFILE


def test_redis_persists_and_evicts_nothing() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert SERVICES["redis"]["volumes"]


def test_kafka_is_its_own_controller_and_keeps_its_data() -> None:
    environment = SERVICES["kafka"]["environment"]
    assert environment["KAFKA_PROCESS_ROLES"] == "broker,controller"
    assert SERVICES["kafka"]["volumes"] == [f"kafka:{environment['KAFKA_LOG_DIRS']}"]
