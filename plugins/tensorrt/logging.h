// The plugin's words in TensorRT's log, and the one place where exceptions end.
#pragma once

#include <NvInferRuntime.h>

#include <exception>
#include <string>
#include <utility>

namespace rainfusion::tensorrt {

using Severity = nvinfer1::ILogger::Severity;

// What TensorRT hands to setLoggerFinder; nullptr to forget it.
void set_logger_finder(void* finder) noexcept;

// To the logger of the engine or builder that is calling, else the runtime's global one, else
// stderr.
void log(Severity severity, const std::string& message) noexcept;

// Runs `body`, and turns an exception into a line of the log and `failure`. Every function that
// TensorRT calls goes through here, since none may throw.
template <typename Result, typename Body>
Result guarded_as(const char* plugin, const char* call, Result failure, Body&& body) noexcept {
  try {
    return std::forward<Body>(body)();
  } catch (const std::exception& error) {
    log(Severity::kERROR, std::string(plugin) + " " + call + ": " + error.what());
  }
  return failure;
}

template <typename Result, typename Body>
Result guarded(const char* call, Result failure, Body&& body) noexcept {
  return guarded_as("RainFusionAttention", call, failure, std::forward<Body>(body));
}

}  // namespace rainfusion::tensorrt
