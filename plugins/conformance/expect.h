// Checks that count their failures and go on.
#pragma once

#include <cstdio>
#include <string>

namespace conformance {

class Report {
 public:
  void begin(std::string const& name) { name_ = name; }

  bool expect(bool condition, std::string const& what) {
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
