// What the CUDA bindings share: the stream, the device, and how a failure is told.
#pragma once
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <initializer_list>
#include <optional>
#include <utility>

#include "../cuda/launch.h"
#include "tensors.h"

namespace perilune {

using at::Tensor;

// Device and stream of a call; what torch is asked for on its way is neither recorded nor cast.
class Call {
 public:
  typedef std::pair<const char*, const Tensor&> Named;

  // All arguments must lie on one device.
  explicit Call(std::initializer_list<Named> arguments)
      : device_(arguments.begin()->second.device()), plain_(c10::autocast_dispatch_keyset) {
    at::Device device = device_.current_device();
    TORCH_CHECK_VALUE(device.is_cuda(), arguments.begin()->first, ": expected a tensor on a GPU, got ", device);
    for (const Named& named : arguments) expect_here(named.first, named.second);
    stream_ = c10::cuda::getCurrentCUDAStream(device.index()).stream();
  }

  // One more argument, if it was given.
  void also(const char* name, const std::optional<Tensor>& tensor) const {
    if (tensor && tensor->defined()) expect_here(name, *tensor);
  }

  cuda::Stream stream() const { return stream_; }

  static void check(cuda::Failure failure, const char* kernel) {
    TORCH_CHECK(!failure, "the kernel ", kernel, " was not launched: ", failure);
  }

 private:
  void expect_here(const char* name, const Tensor& tensor) const {
    TORCH_CHECK_VALUE(tensor.device() == device_.current_device(), name, ": expected a tensor on ",
                      device_.current_device(), ", got ", tensor.device());
  }

  c10::DeviceGuard device_;
  at::AutoDispatchBelowADInplaceOrView below_autograd_;
  c10::impl::ExcludeDispatchKeyGuard plain_;
  cuda::Stream stream_;
};

}  // namespace perilune
