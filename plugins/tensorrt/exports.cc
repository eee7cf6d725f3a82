// What IPluginRegistry::loadLibrary and trtexec --dynamicPlugins look for in a plugin library.
#include <NvInferRuntime.h>

#include <iterator>

#include "creator.h"
#include "logging.h"
#include "rainfusion/rainfusion.h"
#include "tokens_plugin.h"

extern "C" RAINFUSION_API nvinfer1::IPluginCreatorInterface* const* getCreators(
    int32_t& count) noexcept {
  // Every plugin.
  using rainfusion::tensorrt::TokensKind;
  static rainfusion::tensorrt::Creator attention;
  static rainfusion::tensorrt::TokensCreator split(TokensKind::kSplit);
  static rainfusion::tensorrt::TokensCreator gather(TokensKind::kGather);
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&attention, &split, &gather};
  count = static_cast<int32_t>(std::size(creators));
  return creators;
}

extern "C" RAINFUSION_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept {
  rainfusion::tensorrt::set_logger_finder(finder);
}
