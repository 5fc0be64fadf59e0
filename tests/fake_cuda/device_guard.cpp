// Device guard and hooks that a CPU build of torch lacks for fake tensors on "cuda": one device, which does nothing.
// Loaded before torch, which asks for the hooks once. See torch/include/c10/core/impl/DeviceGuardImplInterface.h.
#include <ATen/detail/CUDAHooksInterface.h>

#include "no_op_guard.h"

static c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, new NoOpGuard<c10::DeviceType::CUDA>());

namespace at {
// the registry looks for this class name
struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}
