"""ONNX -> TensorRT network -> serialised engine; runs in the build process only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rainfusion_trt.engine.flavour import TensorRTFlavour, load_tensorrt
from rainfusion_trt.engine.logger import NO_GPU, HeldLog, make_logger
from rainfusion_trt.engine.messages import (
    BuildRequest,
    Built,
    Event,
    LogLine,
    PhaseFinished,
    PhaseStarted,
    StepDone,
)
from rainfusion_trt.engine.metadata import TensorRecord
from rainfusion_trt.engine.plugin_registry import register_plugin
from rainfusion_trt.engine.recipe import BuilderSettings, ShapeRange
from rainfusion_trt.engine.records import dtype_of
from rainfusion_trt.errors import EngineBuildError
from rainfusion_trt.graph_file import (
    GATHER_OP_TYPE,
    PLUGIN_ATTRIBUTES,
    PLUGIN_NAME,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    SPLIT_OP_TYPE,
)

Emit = Callable[[Event], None]
_OURS = (PLUGIN_NAME, SPLIT_OP_TYPE, GATHER_OP_TYPE)  # by which lines of the log begin


def build(request: BuildRequest, emit: Emit) -> Built:
    """Build the engine that `request` asks for and write it to ``request.plan``.

    Raises
    ------
    EngineBuildError
        With the place where it failed; TensorRT's own words went to `emit`.
    """
    flavour = load_tensorrt(request.flavour)
    trt = flavour.module
    log = HeldLog(emit, without_gpu=request.targets is not None)
    logger = make_logger(trt, log)
    builder = trt.Builder(logger)
    if not register_plugin(trt, request.plugin):
        raise EngineBuildError(
            f"{flavour} cannot load the plugin library {request.plugin}: build it again with "
            "`rainfusion-trt build-plugin`"
        )
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    with log.held() as lines:
        parsed = parser.parse_from_file(str(request.onnx))
        if not parsed:  # the log says the same once more, among the parser's own affairs
            cause = _parser_errors(parser, lines)
            lines.clear()
    if not parsed:
        raise EngineBuildError(f"{flavour} cannot parse {request.onnx}: {cause}")
    plugin_layers = count_plugin_layers(trt, network, request.attention_nodes, emit)
    check_token_layers(trt, network, request.token_nodes)
    config = builder.create_builder_config()
    monitor = make_progress_monitor(trt, emit)
    config.progress_monitor = monitor
    _configure(flavour, config, request.builder)
    if flavour.name == "tensorrt_rtx":
        _set_targets(trt, config, request.targets)
    for name, shapes in request.profiles.items():
        _add_profile(builder, config, name, shapes)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineBuildError(f"{flavour} could not build an engine from {request.onnx}")
    content = memoryview(serialized)
    request.plan.write_bytes(content)
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    results = [network.get_output(index) for index in range(network.num_outputs)]
    return Built(
        plugin_layers=plugin_layers,
        inputs=tuple(_tensor_record(trt, tensor, request.profiles) for tensor in tensors),
        outputs=tuple(_tensor_record(trt, tensor, {}) for tensor in results),
        engine_size=content.nbytes,
        engine_sha256=hashlib.sha256(content).hexdigest(),
    )


def count_plugin_layers(trt: Any, network: Any, expected: tuple[str, ...], emit: Emit) -> int:
    """Number of layers of our plugin; raises if a node of `expected` did not become one.

    Layers of other plugins are not counted.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    plugins = [layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    ours = [layer.name for layer in plugins if _is_ours(trt, layer, expected, emit)]
    if len(ours) == len(expected):
        return len(ours)
    if len(ours) > len(expected):
        raise EngineBuildError(
            f"{len(ours)} {PLUGIN_NAME} layers came of {len(expected)} nodes of the graph; it has "
            "more of them inside a function or a branch: export the model again"
        )
    missing = [node for node in expected if not any(node in name for name in ours)]
    raise EngineBuildError(
        f"only {len(ours)} of {len(expected)} {PLUGIN_NAME} nodes became plugin layers; "
        f"TensorRT would run the dense body of {', '.join(missing[:3]) or 'the others'}"
        f"{' ...' if len(missing) > 3 else ''}. Either the plugin library does not provide "
        f"{PLUGIN_NAME} version {PLUGIN_VERSION}, or the nodes lack the attributes "
        f"{' and '.join(PLUGIN_ATTRIBUTES)}: build the plugin and export the model again"
    )


def check_token_layers(trt: Any, network: Any, expected: tuple[str, ...]) -> None:
    """Raise if a node that cuts the tokens, or puts them together, became no plugin layer.

    Its body is that of one GPU alone, and would give several the same tokens.
    """
    if not expected:
        return
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    names = [layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    missing = [node for node in expected if not any(node in name for name in names)]
    if missing:
        raise EngineBuildError(
            f"{', '.join(missing[:3])} became no plugin layers, by which several GPUs share the "
            "tokens: build the plugin and export the model again"
        )


def _is_ours(trt: Any, layer: Any, expected: tuple[str, ...], emit: Emit) -> bool:
    """Whether a plugin layer is RainFusionAttention, by its plugin's name and namespace."""
    try:
        # The bindings hand out every layer as the base class, which does not know its plugin.
        layer.__class__ = trt.IPluginV3Layer
        core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
        found = core.plugin_name, core.plugin_namespace
    except (AttributeError, TypeError) as error:
        text = f"TensorRT does not say whose plugin layer {layer.name} is ({error}): judged by name"
        emit(LogLine(severity="warning", text=text))
        return layer.name in expected
    return found == (PLUGIN_NAME, PLUGIN_NAMESPACE)


def make_progress_monitor(trt: Any, emit: Emit) -> Any:
    """A TensorRT progress monitor that emits phases and steps; TensorRT's threads call it."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            emit(PhaseStarted(phase=phase_name, parent=parent_phase or None, steps=num_steps))

        def phase_finish(self, phase_name: str) -> None:
            emit(PhaseFinished(phase=phase_name))

        def step_complete(self, phase_name: str, step: int) -> bool:
            emit(StepDone(phase=phase_name, step=step))
            return True

    return Monitor()


def _network_flags(trt: Any) -> int:
    # TensorRT 11 knows no other networks and will drop the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parser_errors(parser: Any, lines: Iterable[LogLine]) -> str:
    """What the parser says is wrong, and what our plugin said of it in the log."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    words = [_parser_error(error) for error in errors]
    words += [line.text for line in lines if line.failure and line.text.startswith(_OURS)]
    return "; ".join(dict.fromkeys(words)) or "it does not say why"


def _parser_error(error: Any) -> str:
    operator, node = error.node_operator(), error.node_name()
    if "Plugin not found" in error.desc():
        return f"it knows no operator {operator or node!r}, and there is no plugin of that name"
    place = f" (node {node or operator})" if node or operator else ""
    return NO_GPU.sub("", error.desc()).strip() + place


def _configure(flavour: TensorRTFlavour, config: Any, settings: BuilderSettings) -> None:
    trt = flavour.module
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.workspace_gib is not None:
        size = int(settings.workspace_gib * (1 << 30))
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    known = trt.BuilderFlag.__members__
    for name in settings.flags:
        if name not in known:
            raise EngineBuildError(
                f"{flavour} has no builder flag {name!r}; it has {', '.join(sorted(known))}"
            )
        config.set_flag(known[name])


def _set_targets(trt: Any, config: Any, targets: tuple[str, ...] | None) -> None:
    known = trt.ComputeCapability.__members__
    names = ("CURRENT",) if targets is None else tuple(name.upper() for name in targets)
    for name in names:
        if name not in known:
            choices = sorted(key.lower() for key in known if key.startswith("SM"))
            raise EngineBuildError(
                f"TensorRT for RTX cannot build for {name.lower()}; it can for {', '.join(choices)}"
            )
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(known[name], index):
            raise EngineBuildError(f"TensorRT for RTX refused the target {name.lower()}")


def _add_profile(
    builder: Any, config: Any, profile_name: str, shapes: Mapping[str, ShapeRange]
) -> None:
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape.min, shape.opt, shape.max)
    if config.add_optimization_profile(profile) < 0:
        raise EngineBuildError(f"TensorRT refused the optimisation profile {profile_name!r}")


def _tensor_record(
    trt: Any, tensor: Any, profiles: Mapping[str, Mapping[str, ShapeRange]]
) -> TensorRecord:
    dtype = dtype_of(tensor.dtype.name)
    if dtype is None:
        raise EngineBuildError(
            f"{tensor.name} is {tensor.dtype.name.lower()}, which torch cannot hand over: give "
            "inputs and outputs of the model another element type"
        )
    shape = tuple(tensor.shape)
    fixed = ShapeRange(min=shape, opt=shape, max=shape) if min(shape, default=1) > 0 else None
    served = {name: shapes.get(tensor.name, fixed) for name, shapes in profiles.items()}
    ranges = {name: shape for name, shape in served.items() if shape is not None}
    return TensorRecord(name=tensor.name, dtype=dtype, shape=shape, profiles=ranges)
