"""The wheel holds the facts, runs from another folder without the checkout, and has the changelog's version."""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import kvtool

ROOT = Path(__file__).parents[1]
WHERE = """
import json, sys, kvtool
from kvtool.catalog.models_yaml import load_catalogue
print(json.dumps({"package": kvtool.__file__, "catalogue": load_catalogue().path, "path": sys.path}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of a fresh environment that has the wheel, and this environment's other packages."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    # A folder named in a .pth file gives its modules, but its own .pth files, the editable install's, are not read.
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    return python.parent


def test_the_wheel_holds_the_facts_and_the_typed_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"kvtool/catalog/models.yaml", "kvtool/catalog/gpus.yaml", "kvtool/py.typed"} <= names
    assert {"kvtool/kernels/cpu/c/vectors.h", "kvtool/kernels/cpu/c/prefill.c"} <= names  # built where they run
    assert {name.split("/")[0] for name in names} == {"kvtool", f"kvtool-{kvtool.__version__}.dist-info"}


def test_the_installed_wheel_sizes_a_model_from_another_folder(installed: Path, tmp_path: Path) -> None:
    (row,) = json.loads(run(installed / "kvtool", "size", "llama-3.1-8b", "--context", "8k", "--json", cwd=tmp_path))[
        "rows"
    ]
    assert row["kv"]["bytes_per_token"] == 2 * 32 * 8 * 128 * 2


def test_the_installed_wheel_reads_its_own_catalogue(installed: Path, tmp_path: Path) -> None:
    found = json.loads(run(installed / "python", "-c", WHERE, cwd=tmp_path))
    home = str(installed.parent)
    assert found["package"].startswith(home)
    assert found["catalogue"].startswith(home)
    assert str(ROOT) not in found["path"]


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == kvtool.__version__
