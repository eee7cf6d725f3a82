// Checks that count their failures and go on.
#pragma once

#include <cstdio>
#include <string>

namespace conformance {

class Report {
 public:
  void begin(const std::string& name) { name_ = name; }

  bool expect(bool condition, const std::string& what) {
    ++checks_;
    if (!condition) {
      ++failures_;
      std::printf("FAILED %s: %s\n", name_.c_str(), what.c_str());
    }
    return condition;
  }

  int checks() const { return checks_; }
  int failures() const { return failures_; }

 private:
  std::string name_;
  int checks_ = 0;
  int failures_ = 0;
};

}  // namespace conformance
