// A host that treats a plugin library as TensorRT does: loads it, gives it a logger, finds the
// creator, and takes a layer through the build phase, an engine file and the run time. With a real
// runtime, that one's registry does the first three.
//
// Its main program must define getInferLibVersion, as a runtime does (see runtime_identity.cc).
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "expressions.h"
#include "fields.h"
#include "log.h"
#include "real_runtime.h"

namespace trt_host {

class PluginLibrary {
 public:
  // `runtime` logs to `log`; null for none.
  PluginLibrary(const std::string& path, Log& log, const RealRuntime* runtime = nullptr)
      : log_(log), finder_(log), runtime_(runtime) {
    handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr) throw std::runtime_error(dlerror());
    if (runtime_ == nullptr) {
      symbol<void(nvinfer1::ILoggerFinder*)>("setLoggerFinder")(&finder_);
    } else if ((registered_ = runtime_->load(path)) == nullptr) {
      throw std::runtime_error("the runtime cannot load " + path + log_.all());
    }
  }

  ~PluginLibrary() {
    if (runtime_ != nullptr) {
      runtime_->unload(registered_);
    } else {
      symbol<void(nvinfer1::ILoggerFinder*)>("setLoggerFinder")(nullptr);
    }
    dlclose(handle_);
  }

  PluginLibrary(const PluginLibrary&) = delete;
  PluginLibrary& operator=(const PluginLibrary&) = delete;

  template <typename Function>
  Function* symbol(const char* name) const {
    void* const address = dlsym(handle_, name);
    if (address == nullptr) throw std::runtime_error(std::string("no symbol ") + name);
    return reinterpret_cast<Function*>(address);
  }

  std::vector<nvinfer1::IPluginCreatorInterface*> creators() const {
    int32_t count = 0;
    auto* const get = symbol<nvinfer1::IPluginCreatorInterface* const*(int32_t&)>("getCreators");
    nvinfer1::IPluginCreatorInterface* const* const list = get(count);
    return {list, list + count};
  }

  // The creator TensorRT picks for a node of domain `space` and type `name`.
  nvinfer1::IPluginCreatorV3One& creator(const std::string& name, const std::string& version,
                                         const std::string& space) const {
    std::vector<nvinfer1::IPluginCreatorInterface*> candidates = creators();
    if (runtime_ != nullptr) {
      candidates = {runtime_->creator(name.c_str(), version.c_str(), space.c_str())};
    }
    for (nvinfer1::IPluginCreatorInterface* candidate : candidates) {
      if (candidate == nullptr) continue;
      const nvinfer1::InterfaceInfo info = candidate->getInterfaceInfo();
      if (std::strcmp(info.kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
      auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(candidate);
      if (creator->getPluginName() == name && creator->getPluginVersion() == version &&
          creator->getPluginNamespace() == space) {
        return *creator;
      }
    }
    throw std::runtime_error("no creator of " + space + "::" + name + " version " + version);
  }

  Log& log() { return log_; }

 private:
  Log& log_;
  LoggerFinder finder_;
  const RealRuntime* runtime_;
  void* registered_ = nullptr;
  void* handle_ = nullptr;
};

// A plugin object with its capabilities, each asked for and checked as TensorRT does.
class Plugin {
 public:
  explicit Plugin(nvinfer1::IPluginV3* plugin) : plugin_(plugin) {}

  explicit operator bool() const { return plugin_ != nullptr; }
  nvinfer1::IPluginV3* get() const { return plugin_.get(); }

  nvinfer1::IPluginV3OneCore& core() const {
    return *static_cast<nvinfer1::IPluginV3OneCore*>(
        capability(nvinfer1::PluginCapabilityType::kCORE, "PLUGIN_V3ONE_CORE"));
  }

  nvinfer1::IPluginV3OneBuild& build() const {
    return *static_cast<nvinfer1::IPluginV3OneBuild*>(
        capability(nvinfer1::PluginCapabilityType::kBUILD, "PLUGIN_V3ONE_BUILD"));
  }

  nvinfer1::IPluginV3OneRuntime& runtime() const {
    return *static_cast<nvinfer1::IPluginV3OneRuntime*>(
        capability(nvinfer1::PluginCapabilityType::kRUNTIME, "PLUGIN_V3ONE_RUNTIME"));
  }

  Plugin clone() const { return Plugin(plugin_->clone()); }

 private:
  nvinfer1::IPluginCapability* capability(nvinfer1::PluginCapabilityType type,
                                          const char* kind) const {
    nvinfer1::IPluginCapability* const found = plugin_->getCapabilityInterface(type);
    if (found == nullptr || std::strcmp(found->getInterfaceInfo().kind, kind) != 0) {
      throw std::runtime_error(std::string("no capability ") + kind);
    }
    return found;
  }

  std::unique_ptr<nvinfer1::IPluginV3> plugin_;
};

}  // namespace trt_host
