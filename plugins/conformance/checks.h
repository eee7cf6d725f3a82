// The groups of checks of the conformance program.
#pragma once

#include "expect.h"
#include "trt_host.h"

namespace conformance {

// Loading, unloading and loading again, in a real runtime. Needs no GPU.
void check_registry(const trt_host::RealRuntime& runtime, trt_host::Log& log,
                    const std::string& path, Report& report);

// Creator, shapes, formats and every wrong input. Needs no GPU.
void check_protocol(trt_host::PluginLibrary& library, Report& report);

// The workspace, what an engine keeps of it, and engines of other layouts. Needs no GPU.
void check_workspaces(trt_host::PluginLibrary& library, Report& report);

// Layers of one of several GPUs, without the others. Needs no GPU.
void check_parallel(trt_host::PluginLibrary& library, Report& report);

// Layers of 8 bits: fields, shapes, workspace and errors. Needs no GPU.
void check_precision(trt_host::PluginLibrary& library, Report& report);

// Why GPU 0 has no kernels of 8 bits, or "", also where there is no GPU.
std::string eight_bit_refusal(trt_host::PluginLibrary& library);

// How tokens are cut into windows. Needs no GPU and no library.
void check_windows_geometry(Report& report);

// Which GPUs the library says it runs on. Needs no GPU.
void check_targets(trt_host::PluginLibrary& library, Report& report);

// Whether contexts are refused where the library cannot run on GPU 0. Returns why it cannot, or "".
std::string check_gpu(trt_host::PluginLibrary& library, Report& report);

// enqueue against a float32 reference, under graph replay and on two streams.
void check_execution(trt_host::PluginLibrary& library, Report& report);

}  // namespace conformance
