// What a plugin logs, kept for the checks.
#pragma once

#include <NvInferRuntime.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace trt_host {

// While it lives, what is written to stderr can be read here instead.
class StderrReader {
 public:
  StderrReader() : file_(std::tmpfile()), original_(dup(STDERR_FILENO)) {
    if (file_ == nullptr || original_ < 0 || dup2(fileno(file_), STDERR_FILENO) < 0) {
      throw std::runtime_error("stderr cannot be redirected");
    }
  }

  ~StderrReader() {
    dup2(original_, STDERR_FILENO);
    close(original_);
    std::fclose(file_);
  }

  StderrReader(const StderrReader&) = delete;
  StderrReader& operator=(const StderrReader&) = delete;

  // Lines since the last call.
  std::vector<std::string> lines() {
    std::vector<std::string> found;
    std::string line;
    for (char c = 0; pread(fileno(file_), &c, 1, place_) == 1; ++place_) {
      if (c != '\n') {
        line += c;
        continue;
      }
      found.push_back(line);
      line.clear();
    }
    return found;
  }

 private:
  std::FILE* file_;
  int original_;
  off_t place_ = 0;
};

class Log final : public nvinfer1::ILogger {
 public:
  // From now on what is written to stderr counts as an error that was logged: plugins write there
  // where their runtime has no logger for them.
  void read_stderr() { stderr_ = std::make_unique<StderrReader>(); }

  void log(Severity severity, const char* message) noexcept override {
    const std::lock_guard<std::mutex> lock(mutex_);
    lines_.emplace_back(message);
    if (severity <= Severity::kERROR) ++errors_;
  }

  void clear() {
    take_stderr();
    const std::lock_guard<std::mutex> lock(mutex_);
    lines_.clear();
    errors_ = 0;
  }

  int errors() {
    take_stderr();
    return errors_;
  }

  bool has(const std::string& words) {
    take_stderr();
    for (const std::string& line : lines_) {
      if (line.find(words) != std::string::npos) return true;
    }
    return false;
  }

  std::string all() {
    take_stderr();
    std::string text;
    for (const std::string& line : lines_) text += "\n    " + line;
    return text.empty() ? "\n    (nothing)" : text;
  }

 private:
  void take_stderr() {
    if (stderr_ == nullptr) return;
    for (const std::string& line : stderr_->lines()) log(Severity::kERROR, line.c_str());
  }

  std::mutex mutex_;
  std::unique_ptr<StderrReader> stderr_;
  std::vector<std::string> lines_;
  int errors_ = 0;
};

class LoggerFinder final : public nvinfer1::ILoggerFinder {
 public:
  explicit LoggerFinder(nvinfer1::ILogger& logger) : logger_(logger) {}
  nvinfer1::ILogger* findLogger() override { return &logger_; }

 private:
  nvinfer1::ILogger& logger_;
};

}  // namespace trt_host
