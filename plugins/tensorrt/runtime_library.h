// The TensorRT that is loaded in this process, found without linking to it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace rainfusion::tensorrt {

// Layout of the interfaces that differ between TensorRT versions: ILogger, ILoggerFinder and
// IPluginRegistry. The plugin interfaces themselves are the same everywhere.
enum class InterfaceLayout {
  kTensorRT10,
  kTensorRT11,  // also TensorRT for RTX from 1.6 on
  kUnknown
};

struct RuntimeLibrary {
  std::string path;
  bool rtx;         // TensorRT for RTX, which counts its versions on its own
  int32_t version;  // major * 10000 + minor * 100 + patch
  void* handle;     // of dlopen

  int32_t major() const { return version / 10000; }
  InterfaceLayout layout() const;
  std::string name() const;  // for example "TensorRT for RTX 1.7.1"

  template <typename Function>
  Function* symbol(const char* name) const {
    return reinterpret_cast<Function*>(find_symbol(name));
  }

 private:
  void* find_symbol(const char* name) const;
};

// The runtime whose image holds `address` (a vtable, say), if it is one.
std::optional<RuntimeLibrary> runtime_at(const void* address);

// All of libnvinfer, libnvinfer_lean and libtensorrt_rtx in this process, in load order.
std::vector<RuntimeLibrary> loaded_runtimes();

}  // namespace rainfusion::tensorrt
