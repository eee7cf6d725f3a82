#include "logging.h"

#include <cstdio>
#include <mutex>
#include <optional>

#include "interface_layouts.h"
#include "runtime_library.h"

namespace rainfusion::tensorrt {
namespace {

struct LoggerSource {
  void* finder = nullptr;
  std::optional<RuntimeLibrary> runtime;
};

std::mutex source_mutex;
LoggerSource source;

struct Logger {
  void* object = nullptr;
  InterfaceLayout layout = InterfaceLayout::kUnknown;
};

Logger found_logger() {
  const std::lock_guard<std::mutex> lock(source_mutex);
  if (source.finder == nullptr || !source.runtime) return {};
  const InterfaceLayout layout = source.runtime->layout();
  switch (layout) {
    case InterfaceLayout::kTensorRT10:
      return {static_cast<LoggerFinder10*>(source.finder)->findLogger(), layout};
    case InterfaceLayout::kTensorRT11:
      return {static_cast<LoggerFinder11*>(source.finder)->findLogger(), layout};
    case InterfaceLayout::kUnknown:
      break;
  }
  return {};
}

Logger global_logger() {
  for (const RuntimeLibrary& runtime : loaded_runtimes()) {
    auto* const get_logger = runtime.symbol<void*()>("getLogger");
    if (get_logger == nullptr) continue;
    if (void* const object = get_logger()) return {object, runtime.layout()};
  }
  return {};
}

}  // namespace

void set_logger_finder(void* finder) noexcept {
  const std::lock_guard<std::mutex> lock(source_mutex);
  source.finder = finder;
  // The finder is an object of the runtime, so its vtable tells which runtime that is.
  source.runtime = finder == nullptr ? std::nullopt : runtime_at(*static_cast<void**>(finder));
}

void log(Severity severity, const std::string& message) noexcept {
  Logger logger = found_logger();
  if (logger.object == nullptr) logger = global_logger();
  if (logger.object != nullptr && logger.layout == InterfaceLayout::kTensorRT10) {
    static_cast<Logger10*>(logger.object)->log(severity, message.c_str());
  } else if (logger.object != nullptr && logger.layout == InterfaceLayout::kTensorRT11) {
    static_cast<Logger11*>(logger.object)->log(severity, message.c_str());
  } else if (severity <= Severity::kWARNING) {
    std::fprintf(stderr, "%s\n", message.c_str());
  }
}

}  // namespace rainfusion::tensorrt
