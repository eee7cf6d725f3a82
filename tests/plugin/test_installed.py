"""The plugin of an installed package: sources in the package, builds in the user's cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.elf import empty_library
from rainfusion_trt import __version__, places
from rainfusion_trt.engine import load_recipe
from rainfusion_trt.engine.recipes import shipped_recipes
from rainfusion_trt.errors import InvalidInputError, LibraryNotFoundError, PluginBuildError
from rainfusion_trt.plugin import build as module
from rainfusion_trt.plugin import cmake
from rainfusion_trt.plugin.build import (
    LIBRARY_NAME,
    STATIC_LIBRARY_NAMES,
    build_plugin,
    find_library,
    source_directory,
    source_hash,
)

CHECKOUT = source_directory()
HASH = source_hash(CHECKOUT)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """rainfusion_trt in a site-packages, on a machine without a GPU."""
    package = tmp_path / "site-packages" / "rainfusion_trt"
    for name in ("plugins", "engines"):
        shutil.copytree(CHECKOUT / name, package / "_sources" / name)
    shutil.copy2(CHECKOUT / "CMakeLists.txt", package / "_sources")
    monkeypatch.setattr(places, "PACKAGE", package)
    monkeypatch.setattr(places, "CHECKOUT", package.parent)
    monkeypatch.setattr(module, "native_capabilities", tuple)
    monkeypatch.setenv("RAINFUSION_TRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAINFUSION_TRT_LIBRARY", raising=False)
    monkeypatch.delenv("RAINFUSION_CUDA_ARCHITECTURES", raising=False)
    module._installed_library.cache_clear()
    yield package
    module._installed_library.cache_clear()


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache" / "plugin" / f"{__version__}-{HASH}"


@pytest.fixture
def commands(monkeypatch):
    """Record the commands instead of running them, and make the libraries appear."""
    seen = []

    def run(command, log, title, lock):
        seen.append([str(part) for part in command])
        for name in (LIBRARY_NAME, *STATIC_LIBRARY_NAMES):
            (log.parent / name).write_bytes(empty_library(name))

    monkeypatch.setattr(cmake, "_run", run)
    return seen


def ship(package: Path, architectures: str, **changes: str) -> Path:
    """Put a library into the package, as a wheel for one platform does."""
    library = package / "lib" / LIBRARY_NAME
    library.parent.mkdir()
    library.write_bytes(empty_library("shipped"))
    stamp = {"sources": HASH, "architectures": architectures, "version": __version__}
    library.with_name(LIBRARY_NAME + ".json").write_text(
        json.dumps({**stamp, "files": {}, **changes})
    )
    return library


def test_builds_in_the_cache_and_leaves_the_package_alone(package, cache, commands):
    before = sorted(package.rglob("*"))
    assert source_directory() == package / "_sources"
    with pytest.raises(LibraryNotFoundError, match=rf"{cache} nor at .*lib.*build-plugin"):
        find_library()
    library = build_plugin(architectures="80-real;90")
    assert library == cache / "80-real_90" / LIBRARY_NAME
    assert find_library() == library
    assert commands[0][1:5] == ["-S", str(package / "_sources"), "-B", f"{library.parent}/plugin"]
    assert sorted(package.rglob("*")) == before
    assert {path.name for path in library.parent.iterdir()} >= {LIBRARY_NAME, *STATIC_LIBRARY_NAMES}
    assert not (library.parent / "plugin").exists()
    assert build_plugin(architectures="80-real;90") == build_plugin() == library
    assert len(commands) == 2


def test_each_list_of_architectures_has_its_build(package, cache, commands, monkeypatch):
    ampere = build_plugin(architectures="80-real")
    hopper = build_plugin(architectures="90-real")
    assert ampere != hopper
    assert len(commands) == 4
    for gpu, wanted in ((86, ampere), (90, hopper)):
        monkeypatch.setattr(module, "native_capabilities", lambda gpu=gpu: (gpu,))
        module._installed_library.cache_clear()
        assert find_library() == build_plugin() == wanted
    assert len(commands) == 4


@pytest.mark.parametrize("gpus", [(), (86,), (90,), (100,)])
def test_library_of_the_wheel_serves_where_it_runs(package, commands, monkeypatch, gpus):
    monkeypatch.setattr(module, "native_capabilities", lambda: gpus)
    library = ship(package, "80-real;90")  # with PTX of 9.0, for 10.0
    assert find_library() == build_plugin() == build_plugin(architectures="80-real;90") == library
    assert not commands


@pytest.mark.parametrize(
    ("architectures", "changes", "gpus"),
    [
        ("80-real;90-real", {}, (100,)),
        ("80-real", {"sources": "0" * 16}, ()),
        ("80-real", {"version": "0.0.1"}, ()),
    ],
)
def test_library_of_the_wheel_that_does_not_fit(
    package, commands, monkeypatch, architectures, changes, gpus
):
    monkeypatch.setattr(module, "native_capabilities", lambda: gpus)
    shipped = ship(package, architectures, **changes)
    assert find_library() == shipped  # there is no other; what it says names the remedy
    built = build_plugin()
    assert commands
    assert find_library() == built != shipped


def test_own_build_comes_before_the_wheels(package, cache, commands):
    shipped = ship(package, "80-real;90")
    assert find_library() == shipped
    built = build_plugin(architectures="120-real")
    assert built.is_relative_to(cache)
    assert find_library() == built
    assert build_plugin(force=True).is_relative_to(cache)
    assert len(commands) == 4


def test_output_that_was_asked_for(package, tmp_path, commands):
    ship(package, "80-real")
    wanted = tmp_path / "elsewhere" / "lib.so"
    assert build_plugin(wanted) == wanted
    assert wanted.is_file()


def test_cache_that_cannot_be_written(package, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAINFUSION_TRT_CACHE", str(tmp_path / "file"))
    with pytest.raises(PluginBuildError, match=r"cannot build in .*file.*RAINFUSION_TRT_CACHE"):
        build_plugin()


def test_home_that_is_not_there(package, monkeypatch):
    for variable in ("RAINFUSION_TRT_CACHE", "RAINFUSION_TRT_LIBRARY"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "~no-such-user/x")
            with pytest.raises(InvalidInputError, match=f"~no-such-user/x: set {variable} to"):
                find_library()


def test_recipes_by_name(package, tmp_path, monkeypatch):
    recipes = shipped_recipes()
    assert recipes["cogvideox1.5-5b"] == package / "_sources/engines/cogvideox1.5-5b.yaml"
    monkeypatch.chdir(tmp_path)
    Path("cogvideox-2b").mkdir()  # a folder of that name does not stand in the way
    assert load_recipe("cogvideox-2b").model == "cogvideox-2b"
    Path("cogvideox-5b").write_text("precision: bfloat16")
    assert load_recipe("cogvideox-5b").model is None  # a file is taken before a name
    with pytest.raises(InvalidInputError, match=r"engines/wan.yaml is neither .* wan2\.1-1\.3b"):
        load_recipe("engines/wan.yaml")
