// The border of the C interface: no exception leaves it, and the last message of a thread is kept.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>

#include "common/result.h"

namespace rainfusion {

// What the last failing call of this thread had to say.
std::string& last_error();

template <typename Call>
RainfusionStatus guarded(const Call& call, char* message = nullptr, size_t capacity = 0) noexcept {
  try {
    const Result result = call();
    if (!result.ok()) last_error() = result.message;
    if (message != nullptr && capacity > 0) {
      const size_t length = std::min(capacity - 1, result.message.size());
      std::memcpy(message, result.message.data(), length);
      message[length] = '\0';
    }
    return result.status;
  } catch (const std::exception&) {  // out of host memory while a message was built
    if (message != nullptr && capacity > 0) message[0] = '\0';
    return RAINFUSION_INVALID_ARGUMENT;
  }
}

}  // namespace rainfusion
