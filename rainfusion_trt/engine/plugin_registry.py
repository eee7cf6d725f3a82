"""Puts the plugin library into TensorRT's registry, once a process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from rainfusion_trt.graph_file import (
    GATHER_OP_TYPE,
    PLUGIN_NAME,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    SPLIT_OP_TYPE,
)


class PluginIdentity(NamedTuple):
    """The key by which TensorRT finds a creator."""

    name: str
    version: str
    namespace: str


ATTENTION = PluginIdentity(PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE)
SPLIT, GATHER = (
    PluginIdentity(name, PLUGIN_VERSION, PLUGIN_NAMESPACE)
    for name in (SPLIT_OP_TYPE, GATHER_OP_TYPE)
)
PLUGINS = (ATTENTION, SPLIT, GATHER)  # all that the library registers
_log = logging.getLogger(__name__)
_registered: dict[int, Path] = {}  # by registry: TensorRT and TensorRT for RTX have one each


def register_plugin(trt: Any, library: Path) -> bool:
    """Load `library` into the registry of the TensorRT module `trt`.

    Returns
    -------
    bool
        False if TensorRT cannot load it; its log says why.
    """
    registry = trt.get_plugin_registry()
    if all(_has(registry, plugin) for plugin in PLUGINS):
        # A registry refuses a second library with the same plugin, so the first one stays.
        first = _registered.get(id(trt))
        if first != library:
            _log.warning("%s is in use already, not %s", first or "another plugin", library)
        return True
    if registry.load_library(str(library)) is None:
        return False
    _registered[id(trt)] = library
    return True


def _has(registry: Any, plugin: PluginIdentity) -> bool:
    """Whether the registry knows a plugin, without an error in TensorRT's log where it does not."""
    creators = getattr(registry, "all_creators_recursive", None)
    names = [getattr(creator, "name", None) for creator in creators or ()]
    if names and None not in names and plugin.name not in names:
        return False
    return registry.get_creator(*plugin) is not None
