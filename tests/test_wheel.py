"""The wheel, installed as a user installs it, used from a folder that has a ``conf`` and ``components`` of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PACKAGES = ("slime_launch", "components", "conf")


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and this one's packages for what it depends on."""

    folder: Path

    def run(self, *command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=500,
        )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools writes into the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPO / name, source)
    pip("wheel", str(source), "--no-build-isolation", "--wheel-dir", str(out))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip("install", "--no-index", str(wheel), python=python)
    paths = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    # a .pth in a folder that a .pth adds is not read, so the editable install of this environment stays out
    Path(paths.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(folder)


def pip(command: str, *args: str, python: Path | None = None) -> None:
    chosen = ["--python", str(python)] if python else []
    done = subprocess.run(
        [sys.executable, "-m", "pip", *chosen, command, "--quiet", "--no-deps", *args], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A project whose modules have our names, and tell when they are imported."""
    (tmp_path / "conf.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    for package in ("components", "conf"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    (tmp_path / "conf" / "config.yaml").write_text("name: foreign\n")
    return tmp_path


def test_the_wheel_has_every_file(wheel: Path) -> None:
    there = {
        str(file.relative_to(REPO))
        for name in PACKAGES
        for file in (REPO / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.split("/")[0] in PACKAGES}
    assert packed == there


def test_it_is_the_wheel_that_runs(installed: Installed, foreign: Path) -> None:
    done = installed.run("python", "-c", "import slime_launch as s; print(s.__file__)", cwd=foreign, PYTHONPATH=".")
    assert Path(done.stdout.strip()).is_relative_to(installed.folder), done.stdout + done.stderr


def test_it_plans_beside_foreign_packages(installed: Installed, foreign: Path) -> None:
    done = installed.run(
        "slime-launch", "+experiment=qwen3_grpo", "mode=plan", "plan.format=json", cwd=foreign, PYTHONPATH="."
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "qwen3_grpo"
    assert not (foreign / "imported").exists()


@pytest.mark.servers
def test_it_trains_beside_foreign_packages(installed: Installed, foreign: Path, cache_home: Path) -> None:
    done = installed.run(
        "slime-launch", "+experiment=qwen3_grpo", "trainer.num_steps=1", "rollout.num_prompts=4",
        "rollout.group_size=4", "driver.eval_interval=0", "hydra.run.dir=run",
        cwd=foreign, PYTHONPATH=".", XDG_CACHE_HOME=str(cache_home),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((foreign / "run" / "summary.json").read_text())["status"] == "completed"
    assert not (foreign / "imported").exists()


@pytest.mark.parametrize("missing", ["conf", "components"])
def test_a_missing_sibling_is_named(missing: str, tmp_path: Path) -> None:
    house, work = tmp_path / "house", tmp_path / "work"
    work.mkdir()
    for name in {*PACKAGES} - {missing}:
        shutil.copytree(REPO / name, house / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "slime_launch.cli", "+experiment=qwen3_grpo", "mode=plan"],
        cwd=work, env={**os.environ, "PYTHONPATH": str(house)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {missing}={house / missing}: no such folder: ")
    assert str(house / "conf") in done.stderr
    assert str(house / "components") in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(work.iterdir())


def test_foreign_components_imported_before_are_refused(foreign: Path) -> None:
    code = "import components, sys\nfrom slime_launch.cli import command\nsys.exit(command(['mode=plan']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
        cwd=foreign, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(foreign), str(REPO)])},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: components={foreign / 'components'}: another package of this name is ")
