// Plugin fields that own their names and values, as the parser and the engine file keep them.
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace trt_host {

class Fields {
 public:
  Fields() = default;

  // A deep copy: what survives in an engine file after the plugin that wrote it is gone.
  explicit Fields(const nvinfer1::PluginFieldCollection& other) {
    for (int32_t i = 0; i < other.nbFields; ++i) {
      const nvinfer1::PluginField& field = other.fields[i];
      add(field.name, field.type, field.data, field.length);
    }
  }

  Fields& text(const std::string& name, const std::string& value) {
    return add(name, nvinfer1::PluginFieldType::kCHAR, value.data(),
               static_cast<int32_t>(value.size()));
  }

  Fields& number(const std::string& name, float value) {
    return add(name, nvinfer1::PluginFieldType::kFLOAT32, &value, 1);
  }

  Fields& number(const std::string& name, int32_t value) {
    return add(name, nvinfer1::PluginFieldType::kINT32, &value, 1);
  }

  Fields& number(const std::string& name, int64_t value) {
    return add(name, nvinfer1::PluginFieldType::kINT64, &value, 1);
  }

  Fields& numbers(const std::string& name, const std::vector<float>& values) {
    return add(name, nvinfer1::PluginFieldType::kFLOAT32, values.data(),
               static_cast<int32_t>(values.size()));
  }

  Fields& integers(const std::string& name, const std::vector<int32_t>& values) {
    return add(name, nvinfer1::PluginFieldType::kINT32, values.data(),
               static_cast<int32_t>(values.size()));
  }

  // Another value for a number of that name.
  template <typename Number>
  Fields& replace(const std::string& name, Number value) {
    const auto same = [&](const Entry& entry) { return entry.name == name; };
    entries_.erase(std::remove_if(entries_.begin(), entries_.end(), same), entries_.end());
    return number(name, value);
  }

  // Valid until the next change.
  const nvinfer1::PluginFieldCollection* collection() const {
    fields_.clear();
    for (const Entry& entry : entries_) {
      fields_.emplace_back(entry.name.c_str(), entry.data.data(), entry.type, entry.length);
    }
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
  }

  friend bool operator==(const Fields& a, const Fields& b) { return a.entries_ == b.entries_; }

 private:
  struct Entry {
    std::string name;
    nvinfer1::PluginFieldType type;
    int32_t length;
    std::vector<char> data;

    friend bool operator==(const Entry& a, const Entry& b) {
      return a.name == b.name && a.type == b.type && a.length == b.length && a.data == b.data;
    }
  };

  static size_t size_of(nvinfer1::PluginFieldType type) {
    switch (type) {
      case nvinfer1::PluginFieldType::kFLOAT64:
      case nvinfer1::PluginFieldType::kINT64:
        return 8;
      case nvinfer1::PluginFieldType::kFLOAT32:
      case nvinfer1::PluginFieldType::kINT32:
        return 4;
      default:
        return 1;
    }
  }

  Fields& add(const std::string& name, nvinfer1::PluginFieldType type, const void* data,
              int32_t length) {
    Entry entry{name, type, length, std::vector<char>(size_of(type) * static_cast<size_t>(length))};
    if (!entry.data.empty()) std::memcpy(entry.data.data(), data, entry.data.size());
    entries_.push_back(entry);
    return *this;
  }

  std::deque<Entry> entries_;
  mutable std::vector<nvinfer1::PluginField> fields_;
  mutable nvinfer1::PluginFieldCollection collection_;
};

}  // namespace trt_host
