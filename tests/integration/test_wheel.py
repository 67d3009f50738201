"""The sdist and the wheel are whole: in an empty environment, far from the checkout, they do the job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BUILT = (".*", "*.egg-info", "__pycache__", "build", "dist", "*.so", "*.c", "*.html")
TIMEOUT_S = 600

# two environments are made and packages fetched, once for all of them
pytestmark = [pytest.mark.timeout(1200), pytest.mark.xdist_group("wheel")]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run to the end; its stdout. Fails with everything it said."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one sdist and the wheel made from it.

    That of `make wheel`, where EVENTPROC_TEST_DIST names it; else made of a copy in which nothing was built.
    """
    if made := os.environ.get("EVENTPROC_TEST_DIST"):
        return Path(made)
    folder = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "eventproc"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*BUILT))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and what it asks for, nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (wheel,) = dist.glob("*.whl")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run(*pip, "install", "--quiet", "--no-compile", f"{wheel}[embedded]", cwd=folder)
    run(*pip, "check", cwd=folder)
    return folder / "bin"


def sources(*suffixes: str) -> set[str]:
    """Files of the package in the checkout, as paths from its root."""
    files = (ROOT / "eventproc").rglob("*")
    return {
        str(path.relative_to(ROOT)) for path in files if path.suffix in suffixes or path.name == "py.typed"
    }


def sdist_names(dist: Path) -> set[str]:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def wheel_names(dist: Path) -> set[str]:
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_both_hold_every_source_file(dist: Path) -> None:
    wanted = sources(".py", ".pyi", ".pyx", ".pxd", ".lua")
    assert {"eventproc/_reorder.pyx", "eventproc/_reorder.pyi"} <= wanted
    assert any(name.endswith(".lua") for name in wanted)
    assert wanted - sdist_names(dist) == set()
    assert wanted - wheel_names(dist) == set()


def test_the_sdist_holds_what_a_packager_needs(dist: Path) -> None:
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "setup.py"}
    assert wanted - sdist_names(dist) == set()


def test_the_wheel_holds_the_extension_the_licence_and_nothing_but_the_package(dist: Path) -> None:
    names = wheel_names(dist)
    extensions = {source.removesuffix("pyx") for source in sources(".pyx") if source.endswith(".pyx")}
    assert len(extensions) == 6
    for built in extensions:
        assert [name for name in names if name.startswith(built) and name.endswith(".so")], built
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"eventproc"}


def test_generated_c_is_in_neither(dist: Path) -> None:
    assert [name for name in sdist_names(dist) | wheel_names(dist) if name.endswith(".c")] == []


def test_it_is_the_installed_one_that_runs(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import eventproc._reorder as r; print(r.__file__)", cwd=tmp_path)
    assert Path(where).is_relative_to(installed.parent)


def test_without_the_extension_it_says_so(installed: Path, tmp_path: Path) -> None:
    (package,) = (installed.parent / "lib").glob("python3*/site-packages/eventproc")
    shutil.copytree(package, tmp_path / "eventproc", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run(
        [installed / "python", "-c", "import eventproc"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "ImportError: eventproc._entry is not built" in done.stderr


class Deployment:
    """The installed `eventproc-supervisor start --embedded`, and the installed commands pointed at it."""

    def __init__(self, bin: Path, folder: Path) -> None:
        self.bin = bin
        self.folder = folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith("EVENTPROC_")}
        clean.pop("PYTHONPATH", None)
        self.env = clean | {
            "PATH": f"{bin}:{os.environ['PATH']}",
            "EVENTPROC_RUNTIME_DIR": str(folder),
            "EVENTPROC_MONITOR_PORT": "0",
            "EVENTPROC_GAP_TIMEOUT_MS": "500",
            "EVENTPROC_LOG_FORMAT": "json",
        }
        self.log = folder / "supervisor.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [bin / "eventproc-supervisor", "start", "--embedded"],
                cwd=folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def logged(self) -> list[dict[str, Any]]:
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def status(self) -> dict[str, Any]:
        """Its status; empty as long as there is no answer."""
        done = subprocess.run(
            [self.bin / "eventproc-supervisor", "status", "--json"],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def addresses(self) -> dict[str, str]:
        """Environment that leads the other commands to the embedded servers."""
        (line,) = [line for line in self.logged() if "redis_url" in line]
        return {
            "EVENTPROC_KAFKA_BOOTSTRAP_SERVERS": line["kafka_bootstrap_servers"],
            "EVENTPROC_REDIS_URL": line["redis_url"],
        }

    def eventproc(self, *words: str) -> str:
        return run(self.bin / "eventproc", *words, cwd=self.folder, env=self.env | self.addresses())

    def await_status(self, what: str, seconds: float = 60) -> None:
        """Poll until the supervisor runs and, if `what` is "idle", until nothing is left to do."""
        deadline = time.monotonic() + seconds
        status: dict[str, Any] = {}
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
            status = self.status()
            if status and status["supervisor"]["state"] == "running":
                left = [worker["lag"] + worker["parked"] for worker in status["workers"]]
                if what == "running" or not any(left):
                    return
        pytest.fail(f"not {what} within {seconds} s: {status}\n{self.log.read_text(encoding='utf-8')}")


@pytest.fixture
def deployment(installed: Path, tmp_path: Path) -> Iterator[Deployment]:
    started = Deployment(installed, tmp_path)
    yield started
    started.close()


def test_the_installed_one_processes_events(deployment: Deployment) -> None:
    deployment.await_status("running")
    deployment.eventproc(
        "produce",
        *("--users", "60", "--events-per-user", "10", "--shuffle-window", "50"),
        *("--duplicate-ratio", "0.02", "--failing-ratio", "0.02", "--missing-seqs", "3"),
        *("--invalid-records", "3", "--ledger", "ledger.jsonl"),
    )
    deployment.await_status("idle")
    deployment.eventproc("verify", "--ledger", "ledger.jsonl", "--wait-s", "30")
    run(deployment.bin / "eventproc-supervisor", "stop", cwd=deployment.folder, env=deployment.env)
    assert deployment.process.wait(timeout=60) == 0
