// What IPluginRegistry::loadLibrary and trtexec --dynamicPlugins look for in a plugin library.
#include <NvInferRuntime.h>

#include <iterator>

#include "creator.h"
#include "logging.h"
#include "rainfusion/rainfusion.h"

extern "C" RAINFUSION_API nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& count) noexcept {
  static rainfusion::tensorrt::Creator attention;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&attention};  // every plugin
  count = static_cast<int32_t>(std::size(creators));
  return creators;
}

extern "C" RAINFUSION_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept {
  rainfusion::tensorrt::set_logger_finder(finder);
}
