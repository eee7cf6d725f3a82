// The workspace that TensorRT sets aside for a layer: what getWorkspaceSize asked it for.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

namespace rainfusion::tensorrt {

// TensorRT asks copies of a plugin, and saves copies in the engine. TensorRT for RTX makes one copy
// for each optimisation profile, asks it and saves it, and reserves memory by profile; so a copy
// goes by what it was asked for itself. In case another TensorRT times or saves a copy that it
// never asked, copies of a layer share the most that any was asked for: a bound too, if a loose
// one.
class Reservation {
 public:
  // Of a layer that is being built: nothing yet.
  Reservation() = default;

  // Of an engine's layer, where it does not change any more.
  explicit Reservation(size_t bytes) : bytes_(bytes), final_(true) {}

  // Of a copy of the plugin.
  Reservation(const Reservation& other)
      : bytes_(other.bytes_.load()), final_(other.final_), layer_(other.layer_) {}
  Reservation& operator=(const Reservation&) = delete;

  void ask(size_t bytes) {
    if (final_) return;
    raise(bytes_, bytes);
    raise(*layer_, bytes);
  }

  // 0 if nobody has asked.
  size_t bytes() const {
    const size_t own = bytes_;
    return own > 0 ? own : layer_->load();
  }

 private:
  static void raise(std::atomic<size_t>& most, size_t bytes) {
    size_t seen = most;
    while (seen < bytes && !most.compare_exchange_weak(seen, bytes)) {
    }
  }

  std::atomic<size_t> bytes_{0};
  bool final_ = false;
  std::shared_ptr<std::atomic<size_t>> layer_ = std::make_shared<std::atomic<size_t>>(0);
};

}  // namespace rainfusion::tensorrt
