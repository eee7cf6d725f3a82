"""Loading the plugin library into TensorRT's registry, of which a recorder takes the place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rainfusion_trt.engine import plugin_registry
from rainfusion_trt.engine.plugin_registry import ATTENTION, PluginIdentity, register_plugin

OTHER = PluginIdentity("AllToAll", "1", "rainfusion")
LIBRARY = Path("librainfusion_trt.so")


class Registry:
    """Knows `present`, learns what a library has, and refuses one that it knows in part."""

    def __init__(self, *present: PluginIdentity) -> None:
        self.creators = set(present)
        self.loaded: list[str] = []

    def get_creator(self, name: str, version: str, namespace: str) -> object | None:
        return object() if (name, version, namespace) in self.creators else None

    def load_library(self, path: str) -> object | None:
        if self.creators & set(plugin_registry.PLUGINS):
            return None
        self.loaded.append(path)
        self.creators |= set(plugin_registry.PLUGINS)
        return object()


@pytest.fixture(autouse=True)
def two_plugins(monkeypatch):
    monkeypatch.setattr(plugin_registry, "PLUGINS", (ATTENTION, OTHER))
    monkeypatch.setattr(plugin_registry, "_registered", {})


def module(registry: Registry) -> SimpleNamespace:
    return SimpleNamespace(get_plugin_registry=lambda: registry)


def test_loads_a_library_once(caplog):
    registry = Registry()
    trt = module(registry)
    assert register_plugin(trt, LIBRARY)
    assert register_plugin(trt, LIBRARY)
    assert registry.loaded == [str(LIBRARY)]
    assert not caplog.records


def test_the_first_library_stays(caplog):
    registry = Registry(ATTENTION, OTHER)
    assert register_plugin(module(registry), LIBRARY)
    assert not registry.loaded
    assert "another plugin is in use already, not librainfusion_trt.so" in caplog.text


def test_a_library_that_lacks_one_of_the_plugins_will_not_do():
    assert not register_plugin(module(Registry(ATTENTION)), LIBRARY)
