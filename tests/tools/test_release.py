"""Before a release package, changelog and tag must agree; what is not done yet is said, and stops nothing."""

from __future__ import annotations

import pytest

import kvtool
from tools import release

CHANGELOG = "# Changelog\n\n## [{version}] - {date}\n\n### Added\n\n- One.\n\n## [0.1.0] - 2025-01-01\n"


def read(version: str = "0.2.0", date: str = "2026-12-01", tags: tuple[str, ...] = ("v0.2.0",)) -> release.Release:
    return release.read_release("0.2.0", CHANGELOG.format(version=version, date=date), tags)


def test_all_three_agree() -> None:
    assert read().disagreements() == read().missing() == []


def test_a_changelog_of_another_version_disagrees() -> None:
    assert read(version="0.3.0").disagreements() == ["CHANGELOG.md begins with 0.3.0, the package is 0.2.0"]
    assert release.read_release("0.2.0", "# Changelog\n", ()).disagreements() == [
        "CHANGELOG.md begins with None, the package is 0.2.0"
    ]


def test_a_tag_of_another_version_disagrees_and_other_tags_do_not() -> None:
    assert read(tags=("v0.1.9",)).disagreements() == ["HEAD is tagged v0.1.9, the package is 0.2.0"]
    assert read(tags=("nightly", "v0.2.0")).disagreements() == []


def test_a_tagged_version_is_not_unreleased() -> None:
    assert read(date="unreleased").disagreements() == ["HEAD is tagged v0.2.0, but CHANGELOG.md calls 0.2.0 unreleased"]


def test_what_is_missing_is_no_disagreement() -> None:
    early = read(date="unreleased", tags=())
    assert early.disagreements() == []
    assert early.missing() == ["CHANGELOG.md has no date for 0.2.0", "HEAD has no tag v0.2.0"]


def test_a_disagreement_ends_it_with_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"begins with 0\.3\.0.*\n.*tagged v0\.1\.9"):
        release.report(read(version="0.3.0", tags=("v0.1.9",)))
    release.report(read())
    assert capsys.readouterr().out == "kvtool 0.2.0: package, changelog and tag agree\n"


def test_this_checkout_agrees() -> None:
    text = (release.ROOT / "CHANGELOG.md").read_text()
    assert release.read_release(kvtool.__version__, text, release.tags_of_head()).disagreements() == []
