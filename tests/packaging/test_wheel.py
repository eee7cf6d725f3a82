"""Wheels and source distributions: what is in them, and a plugin built from an installed one.

Wheels with the compiled plugin are held to more by scripts/check_wheel.sh.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from rainfusion_trt import __version__
from rainfusion_trt.plugin.build import LIBRARY_NAME, source_directory, source_hash

CHECKOUT = source_directory()
SOURCES = "rainfusion_trt/_sources/"
KINDS = {".py", ".typed", ".md", ".yaml"} | {
    ".cc",
    ".cmake",
    ".cu",
    ".cuh",
    ".h",
    ".in",
    ".map",
    ".txt",
}
NOT_COPIED = (".git", ".venv", "build", "dist", "out", "__pycache__", "*.egg-info", ".*_cache")

pytestmark = pytest.mark.slow


def run(*command: object, **options: object) -> str:
    """The output of `command`."""
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=500, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def pip_wheel(source: Path, output: Path, **environment: str) -> Path:
    command = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*command, "--wheel-dir", output, source, env={**os.environ, **environment})
    (wheel,) = output.glob("*.whl")
    return wheel


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout in which builds have left things behind."""
    copy = tmp_path_factory.mktemp("checkout") / "repository"
    shutil.copytree(CHECKOUT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    stray = (
        "build/lib/rainfusion_trt/removed.py",  # of an earlier version's wheel
        f"build/lib/rainfusion_trt/lib/{LIBRARY_NAME}",
        f"rainfusion_trt/lib/{LIBRARY_NAME}",
        "rainfusion_trt/plugin/__pycache__/build.cpython-310.pyc",
        "rainfusion_trt/demo/bigbuckbunny/__pycache__/x.pyc",
        "plugins/kernels/api.o",
        f"plugins/{LIBRARY_NAME}",
        "engines/tiny-cogvideox.engine/engine.plan",
        "out/demo.mp4",
    )
    for name in stray:
        path = copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("stray")
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    return pip_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The wheel as an installer unpacks it."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    return site


def test_name_and_version(wheel):
    assert wheel.name == f"rainfusion_trt-{__version__}-py3-none-any.whl"


def test_holds_package_shim_and_weights(wheel):
    found = names(wheel)
    package = {path.relative_to(CHECKOUT) for path in CHECKOUT.glob("rainfusion_trt/**/*.py")}
    assert {path.as_posix() for path in package} <= found
    assert "rainfusion_export/__init__.py" in found
    weights = "rainfusion_trt/demo/bigbuckbunny/transformer/diffusion_pytorch_model.safetensors"
    with zipfile.ZipFile(wheel) as file:
        assert file.getinfo(weights).file_size == (CHECKOUT / weights).stat().st_size
    assert wheel.stat().st_size < 20e6


def test_holds_sources_and_recipes(site):
    for folder in ("plugins", "engines"):
        files = [path for path in (CHECKOUT / folder).rglob("*") if path.is_file()]
        files = [path for path in files if path.name != ".clang-format"]  # builds nothing
        assert files
        for path in files:
            copy = site / SOURCES / path.relative_to(CHECKOUT)
            assert copy.read_bytes() == path.read_bytes()
    assert (site / SOURCES / "CMakeLists.txt").is_file()
    assert source_hash(site / SOURCES) == source_hash(CHECKOUT)


def test_holds_nothing_else(wheel):
    weights = "rainfusion_trt/demo/bigbuckbunny/"
    rest = [name for name in names(wheel) if ".dist-info/" not in name]
    assert {Path(n).suffix for n in rest if n.startswith(weights)} <= {
        ".json",
        ".md",
        ".safetensors",
    }
    wrong = [n for n in rest if not n.startswith(weights) and Path(n).suffix not in KINDS]
    wrong += [n for n in rest if "removed" in n or "/lib/" in n]
    wrong += [n for n in rest if not n.startswith(("rainfusion_trt/", "rainfusion_export/"))]
    assert not wrong


def test_command_and_extras(site):
    (information,) = site.glob("*.dist-info")
    entry_points = (information / "entry_points.txt").read_text()
    assert "rainfusion-trt = rainfusion_trt.cli:app" in entry_points
    metadata = message_from_string((information / "METADATA").read_text())
    assert metadata["Version"] == __version__
    assert {"export", "pipeline", "rtx", "build", "cuda"} <= set(metadata.get_all("Provides-Extra"))
    assert (information / "licenses" / "LICENSE").is_file()


def test_source_distribution_makes_the_same_wheel(checkout, wheel, tmp_path):
    code = "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=checkout)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        listed = file.getnames()
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 on
        file.extractall(tmp_path, **safe)
    assert not [name for name in listed if name.endswith((".so", ".o", ".pyc", ".plan"))]
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    assert (unpacked / "tests" / "packaging" / Path(__file__).name).is_file()
    assert (unpacked / "scripts" / "test.sh").is_file()
    assert names(pip_wheel(unpacked, tmp_path / "wheel")) == names(wheel)


def test_wheel_with_libraries_is_for_one_platform(checkout, tmp_path):
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for name in (LIBRARY_NAME, LIBRARY_NAME + ".json", "librainfusion_trt_static10.so"):
        (libraries / name).write_text(name)
    (libraries / "plugin.lock").write_text("")
    environment = {"RAINFUSION_TRT_WHEEL_LIBRARIES": str(libraries)}
    wheel = pip_wheel(checkout, tmp_path / "wheel", **environment)
    assert wheel.name.startswith(f"rainfusion_trt-{__version__}-py3-none-linux_")
    shipped = {name for name in names(wheel) if name.startswith("rainfusion_trt/lib/")}
    assert {Path(name).name for name in shipped} == {
        *(LIBRARY_NAME, LIBRARY_NAME + ".json", "librainfusion_trt_static10.so")
    }
    with zipfile.ZipFile(wheel) as file:
        assert file.read(f"rainfusion_trt/lib/{LIBRARY_NAME}") == LIBRARY_NAME.encode()
        (tags,) = (name for name in file.namelist() if name.endswith(".dist-info/WHEEL"))
        assert b"Root-Is-Purelib: false" in file.read(tags)


FIND = """
import rainfusion_trt
from rainfusion_trt.operator.native import load_library
library = load_library()
print(rainfusion_trt.__file__, library.path, library.build_info, sep="\\n")
"""


def test_plugin_builds_from_the_installed_package(site, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in site.rglob("*")}
    environment = {
        **{name: value for name, value in os.environ.items() if "RAINFUSION" not in name},
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "RAINFUSION_TRT_CACHE": str(tmp_path / "cache"),
    }
    options = {"cwd": tmp_path, "env": environment}
    command = (sys.executable, "-m", "rainfusion_trt.cli", "build-plugin", "--arch", "80-real")
    library = Path(run(*command, **options).strip())
    assert library.is_relative_to(tmp_path / "cache")
    package, path, info = run(sys.executable, "-c", FIND, **options).splitlines()
    assert Path(package).is_relative_to(site)
    assert Path(path) == library
    assert info == f"{__version__}+{source_hash(CHECKOUT)} sm_80"
    assert {path: path.stat().st_mtime_ns for path in site.rglob("*")} == before
