// The functions we call on TensorRT's own objects, at the places where each version keeps them.
//
// TensorRT 11 (and TensorRT for RTX 1.6) made ILogger and ILoggerFinder versioned interfaces and
// dropped the functions for IPluginV2 from IPluginRegistry. Both move entries of the vtable, so an
// object must be called through the layout of the runtime it belongs to, whatever headers this
// library was built with.
#pragma once

#include <NvInferRuntime.h>

namespace rainfusion::tensorrt {

struct Logger10 {
  virtual void log(nvinfer1::ILogger::Severity severity, const char* message) noexcept = 0;

 protected:
  ~Logger10() = default;
};

struct LoggerFinder10 {
  virtual void* findLogger() = 0;

 protected:
  ~LoggerFinder10() = default;
};

struct Logger11 : nvinfer1::IVersionedInterface {
  virtual void log(nvinfer1::ILogger::Severity severity, const char* message) noexcept = 0;
};

struct LoggerFinder11 : nvinfer1::IVersionedInterface {
  virtual void* findLogger() = 0;
};

// Where the vtable of IPluginRegistry has the functions for IPluginCreatorInterface.
struct RegistryEntries {
  int load_library;
  int deregister_library;
  int register_creator;
  int get_creator;
};

constexpr RegistryEntries kRegistry10{10, 11, 12, 14};
constexpr RegistryEntries kRegistry11{6, 7, 8, 10};

// The function at one of these places of an object, which is its first argument.
template <typename Function>
Function* entry_of(void* object, int entry) {
  return reinterpret_cast<Function*>((*static_cast<void***>(object))[entry]);
}

}  // namespace rainfusion::tensorrt
