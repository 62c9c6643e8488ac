"""What must hold before a version is given away: `make release`. Nothing is published.

It checks that the version, the changelog and the tag of HEAD agree, builds sdist and wheel into dist/, installs the
wheel with its dependencies into an empty environment that sees neither this checkout nor this environment, and runs
there what a user runs first: size, bench on the smallest model, compare.

    python tools/release.py            exits with 1 where two of them disagree or a step fails
    python tools/release.py --check    the agreement alone
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import kvtool

ROOT = Path(__file__).parents[1]
MODEL = "smollm2-135m"
BENCH = "--parts latency --num-layers 2 --input-len 32 --output-len 4 --batch-size 1 --num-iters 5 --threads 1"
FIRST_USE = (
    "kvtool --version",
    f"kvtool size {MODEL} --context 8k --gpu h100",
    f"kvtool bench {MODEL} {BENCH} --out first",
    f"kvtool bench {MODEL} {BENCH} --out second",
    "kvtool compare first second",
)


@dataclass(frozen=True, slots=True)
class Release:
    """What says which version this is: the package, the newest heading of the changelog, the tags of HEAD."""

    version: str
    changelog_version: str | None
    changelog_date: str | None
    tags: tuple[str, ...]

    def disagreements(self) -> list[str]:
        """What contradicts the package's version, a line each."""
        wrong = []
        if self.changelog_version != self.version:
            wrong.append(f"CHANGELOG.md begins with {self.changelog_version}, the package is {self.version}")
        versions = [tag for tag in self.tags if re.fullmatch(r"v\d+\.\d+\.\d+.*", tag)]
        wrong += [f"HEAD is tagged {tag}, the package is {self.version}" for tag in versions if tag != self.tag]
        if self.tag in self.tags and self.changelog_date == "unreleased":
            wrong.append(f"HEAD is tagged {self.tag}, but CHANGELOG.md calls {self.version} unreleased")
        return wrong

    def missing(self) -> list[str]:
        """What is still to do before it is released."""
        todo = []
        if self.changelog_date == "unreleased":
            todo.append(f"CHANGELOG.md has no date for {self.version}")
        if self.tag not in self.tags:
            todo.append(f"HEAD has no tag {self.tag}")
        return todo

    @property
    def tag(self) -> str:
        """Of this version."""
        return f"v{self.version}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="build nothing")
    check: bool = parser.parse_args().check
    release = read_release(kvtool.__version__, (ROOT / "CHANGELOG.md").read_text(), tags_of_head())
    report(release)
    if not check:
        try_wheel(build(ROOT / "dist"), release.version)
    for todo in release.missing():
        print(f"to do: {todo}")


def read_release(version: str, changelog: str, tags: Sequence[str]) -> Release:
    """The version as its three sources have it."""
    newest = re.search(r"^## \[(.+?)\] - (.+?)\s*$", changelog, re.MULTILINE)
    return Release(version, newest and newest[1], newest and newest[2], tuple(tags))


def tags_of_head() -> list[str]:
    """None where this is no git checkout."""
    done = subprocess.run(["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.split()


def report(release: Release) -> None:
    """Exit with 1 and every disagreement, or say what agrees."""
    if wrong := release.disagreements():
        sys.exit("\n".join(wrong))
    print(f"kvtool {release.version}: package, changelog{' and tag' if release.tag in release.tags else ''} agree")


def build(folder: Path) -> Path:
    """The sdist and, made out of it, the wheel; the path of the wheel."""
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], cwd=ROOT)
    return folder / f"kvtool-{kvtool.__version__}-py3-none-any.whl"


def try_wheel(wheel: Path, version: str) -> None:
    """Install it as pipx would, in an environment of its own, and use it for the first time, away from the checkout."""
    with tempfile.TemporaryDirectory(prefix="kvtool-release-") as home:
        venv.create(Path(home, "venv"), with_pip=True)
        scripts = Path(home, "venv", "bin")
        constraint = ["--constraint", str(ROOT / "constraints.txt")]
        run([str(scripts / "python"), "-m", "pip", "install", "--quiet", *constraint, str(wheel)], cwd=Path(home))
        printed = [run(command.split(), cwd=Path(home), path=scripts) for command in FIRST_USE]
        if version not in printed[0]:
            sys.exit(f"the installed kvtool is {printed[0].strip()}, not {version}")


def run(command: Sequence[str], *, cwd: Path, path: Path | None = None) -> str:
    """Standard output of a command that sees no PYTHON variable of ours; shows its last lines. Exits if it fails."""
    print("$", " ".join(Path(word).name if word.startswith("/") else word for word in command), flush=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if path is not None:
        environment["PATH"] = os.pathsep.join([str(path), environment["PATH"]])
        command = [str(path / command[0]), *command[1:]]
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)
    print("\n".join(done.stdout.splitlines()[-6:]))
    if done.returncode != 0:
        sys.exit(f"make release: {command[0]} exited with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
