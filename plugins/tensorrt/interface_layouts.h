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

// Entries of the vtable of IPluginRegistry::registerCreator(IPluginCreatorInterface&, ...).
constexpr int kRegisterCreator10 = 12;
constexpr int kRegisterCreator11 = 8;

}  // namespace rainfusion::tensorrt
