"""constraints.txt, the tested set: a release of every dependency for each promised Python, as pyproject.toml admits."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
PROMISED = SpecifierSet(PROJECT["project"]["requires-python"])
PYTHONS = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in PROMISED]
MACHINES = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")]


def direct_dependencies() -> list[Requirement]:
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    lines = [line for lines in (PROJECT["project"]["dependencies"], *extras.values()) for line in lines]
    # An extra may name others of the project.
    return [found for found in map(Requirement, lines) if found.name != PROJECT["project"]["name"]]


def applying(requirements: Iterable[Requirement], environment: dict[str, str]) -> dict[str, list[Requirement]]:
    """The requirements whose markers hold, by normalised name."""
    found: dict[str, list[Requirement]] = {}
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            found.setdefault(re.sub(r"[-_.]+", "-", requirement.name).lower(), []).append(requirement)
    return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("system", "machine"), MACHINES)
def test_every_dependency_is_pinned_to_a_release_that_is_admitted(python: str, system: str, machine: str) -> None:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": system,
        "platform_machine": machine,
        "platform_system": system.capitalize(),
    }
    pins = applying(PINS, environment)
    for name, wanted in applying(direct_dependencies(), environment).items():
        assert name in pins, f"{name} is not pinned: make update-dependencies"
        (pin,) = pins[name]
        (version,) = pin.specifier
        assert version.operator == "=="
        for requirement in wanted:
            assert requirement.specifier.contains(version.version), (
                f"{pin} is pinned, {requirement} needed: make update-dependencies"
            )


def test_constraints_say_versions_and_nothing_of_where_they_come_from() -> None:
    for pin in PINS:
        assert pin.url is None and not pin.extras
        assert [clause.operator for clause in pin.specifier] == ["=="]


def test_every_dependency_has_a_lowest_release() -> None:
    without = [str(each) for each in direct_dependencies() if not any(one.operator == ">=" for one in each.specifier)]
    assert without == []


def test_the_same_pythons_are_promised_everywhere() -> None:
    assert PYTHONS, "some Python is promised"
    words = f"{', '.join(PYTHONS[:-1])} or {PYTHONS[-1]}"
    makefile = (ROOT / "Makefile").read_text()
    assert f"PYTHONS ?= {' '.join(f'python{version}' for version in PYTHONS)}\n" in makefile
    assert f"Python {words} is needed" in makefile
    assert f"Python {words}" in (ROOT / "README.md").read_text()
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")
    assert f"--python-version {PYTHONS[0]} " in makefile, "the tested set holds for the oldest"
