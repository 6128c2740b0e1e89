"""requirements/*.txt are what pyproject.toml asks for, whole, and each file of them has a hash."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK = "".join((ROOT / "requirements" / name).read_text() for name in ("build.txt", "production.txt"))
EXTRAS = ("http", "fast", "llm", "images")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
TARGET = {
    "python_version": "3.11",
    "python_full_version": "3.11.0",  # the first patch asks for the most
    "sys_platform": "linux",
    "platform_system": "Linux",
    "extra": "",
}


def entries():
    """One text for each package: its line and those that go on with it."""
    text = "\n".join(line for line in LOCK.splitlines() if not line.startswith("#"))
    return [entry.strip() for entry in re.sub(r"\\\n", " ", text).splitlines() if entry.strip()]


def pinned():
    """Each package and its version."""
    found = {}
    for entry in entries():
        requirement = Requirement(entry.split("--hash")[0].strip())
        [specifier] = requirement.specifier
        found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def asked():
    """What pyproject.toml says of an installation with these extras, and of building it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        said = tomllib.load(file)
    extras = said["project"]["optional-dependencies"]
    wanted = said["build-system"]["requires"] + said["project"]["dependencies"]
    return [Requirement(line) for line in wanted + [line for extra in EXTRAS for line in extras[extra]]]


def applies(requirement, extras=("",)):
    return not requirement.marker or any(requirement.marker.evaluate(TARGET | {"extra": extra}) for extra in extras)


def test_each_line_is_one_version_with_hashes():
    for entry in entries():
        plain = HASH.sub("", entry).strip()
        assert HASH.search(entry) and re.fullmatch(r"[a-z0-9._-]+==[a-z0-9.]+( ; [^-]+)?", plain), (
            entry
        )  # no other option
    assert len(pinned()) == len(entries()) > 0


@pytest.mark.parametrize("requirement", asked(), ids=str)
def test_what_pyproject_asks_for_is_there_in_a_version_that_it_allows(requirement):
    assert pinned()[canonicalize_name(requirement.name)] in requirement.specifier


def test_what_those_packages_ask_for_is_there_too():
    """By what the packages that are installed here say of themselves, where it is the same version."""
    have, seen = pinned(), set()
    waiting = [(canonicalize_name(each.name), frozenset(each.extras)) for each in asked() if applies(each)]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        assert name in have, f"{name} is not in requirements: run requirements/update.sh"
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if Version(installed.version) != have[name]:
            continue
        for line in installed.requires or ():
            requirement = Requirement(line)
            if applies(requirement, ("", *extras)):
                of = canonicalize_name(requirement.name)
                assert of in have, f"{name} needs {of}, which requirements lack: run requirements/update.sh"
                assert have[of] in requirement.specifier, f"{name} needs {requirement}, pinned is {have[of]}"
                waiting.append((of, frozenset(requirement.extras)))


def test_nothing_is_pinned_that_nobody_asks_for():
    """A package too many is one more whose maker is trusted. By those that are installed here as they are pinned."""
    have = pinned()
    wanted = {canonicalize_name(each.name) for each in asked()}
    for name, version in have.items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed here")
        if Version(installed.version) != version:
            pytest.skip(f"{name} is installed here in another version: what it asks for is not known")
        wanted |= {canonicalize_name(Requirement(line).name) for line in installed.requires or ()}
    assert have.keys() <= wanted
