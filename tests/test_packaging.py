"""What is installed is all of it, and under names of our own."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest


def build_wheel(repository, folder, **variables):
    """Build a wheel in `folder`; returns its path and the names of the files it could be built from."""
    # Built from a copy: setuptools leaves its build folder in the source tree.
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in tracked:
        if (repository / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((repository / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    environment = {name: value for name, value in os.environ.items() if name != "LORSA_BUILD_KERNELS"} | variables
    subprocess.run(command, check=True, capture_output=True, env=environment)
    (path,) = folder.glob("*.whl")
    return path, tracked


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    path, tracked = build_wheel(repository, tmp_path_factory.mktemp("wheel"))
    return zipfile.ZipFile(path), tracked


# Where Hydra looks for launchers, and the folder that it is.
PLUGIN = ("hydra_plugins/lorsa_launcher", "runner/launch/hydra_plugin")


def test_every_module_config_schema_and_weight_is_in_the_wheel(wheel):
    archive, tracked = wheel
    inside = set(archive.namelist())
    for name in tracked:
        if name.startswith(PLUGIN[1]):
            assert name.replace(PLUGIN[1], PLUGIN[0]) in inside
        elif name.split("/")[0] in ("conf", "kernels", "methods", "runner"):
            assert f"lorsa/{name}" in inside


def test_the_wheel_is_pure_and_has_the_sources_of_the_kernels(wheel):
    archive, _ = wheel
    assert archive.filename.endswith("-py3-none-any.whl")
    assert not [name for name in archive.namelist() if name.endswith(".so")]
    assert "lorsa/kernels/csrc/schema.cpp" in archive.namelist()


@pytest.mark.slow
def test_a_wheel_can_carry_the_kernels_of_this_machine(repository, tmp_path):
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler here")
    path, _ = build_wheel(repository, tmp_path, LORSA_BUILD_KERNELS="1")
    assert not path.name.endswith("-any.whl")
    zipfile.ZipFile(path).extractall(tmp_path / "installed")
    # With an empty cache, the installed package finds what lies in itself.
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "LORSA_CACHE": str(tmp_path / "empty")}
    code = "from lorsa.kernels import library; path = library.find(); library.load(path); print(path)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert Path(found).parents[1] == tmp_path / "installed" / "lorsa" / "kernels" / "built"
    assert json.loads(Path(found).with_name("build.json").read_text())["key"] == Path(found).parent.name


def test_nothing_is_importable_by_a_bare_name(wheel):
    archive, _ = wheel
    assert {name.split("/")[0] for name in archive.namelist() if "dist-info" not in name} == {"lorsa", "hydra_plugins"}
    assert {name for name in archive.namelist() if name.startswith("hydra_plugins")} == {f"{PLUGIN[0]}/__init__.py"}


def test_every_folder_of_a_package_is_declared(repository):
    declared = set(tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    for top in ("kernels", "methods", "runner"):
        for init in (repository / top).rglob("__init__.py"):
            folder = init.parent.relative_to(repository).as_posix()
            assert (PLUGIN[0] if folder == PLUGIN[1] else f"lorsa/{folder}").replace("/", ".") in declared


def test_constraints_pin_everything_that_is_required(repository):
    pinned = {line.split("==")[0].lower() for line in (repository / "constraints.txt").read_text().splitlines()}
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    for requirement in sum(project["optional-dependencies"].values(), project["dependencies"]):
        name = requirement.split(";")[0].split("[")[0]
        for sign in "<>=! ":
            name = name.split(sign)[0]
        assert name.lower() in pinned, requirement
