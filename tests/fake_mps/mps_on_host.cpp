// Stand-in for Apple's GPU under a CPU build of torch: tensors on "mps" in the host's memory, computed by CPU kernels.
// As on a Mac, there is no float64, tensors of two devices do not mix, and there is a generator of its own.
// Loaded before torch, which asks for the hooks once.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <ATen/native/Resize.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <atomic>
#include <mutex>
#include <set>
#include <string>

#include "no_op_guard.h"

using at::Tensor;

namespace {
const c10::Device MPS(c10::DeviceType::MPS, 0);
const c10::DispatchKeySet MPS_KEYS(c10::DispatchKey::MPS);
std::atomic<size_t> allocated{0};
double memory_fraction = 1.7;
std::mutex names_mutex;
std::set<std::string> names;  // of the operations that ran

struct Allocator final : c10::Allocator {
  struct Block {
    c10::DataPtr data;
    size_t size;
  };
  static void free(void* context) {
    auto* block = static_cast<Block*>(context);
    allocated -= block->size;
    delete block;
  }
  c10::DataPtr allocate(size_t size) override {
    auto* block = new Block{c10::GetCPUAllocator()->allocate(size), size};
    allocated += size;
    return {block->data.get(), block, &free, MPS};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, size_t size) const override { default_copy_data(to, from, size); }
};
Allocator allocator;

at::Generator& generator() {
  static at::Generator instance = at::detail::createCPUGenerator(0);
  return instance;
}

c10::impl::DeviceGuardImplRegistrar registrar(MPS.type(), new NoOpGuard<c10::DeviceType::MPS>());

void check_dtype(c10::ScalarType dtype) {
  TORCH_CHECK_TYPE(
      dtype != at::kDouble,
      "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
      "Please use float32 instead.");
}

Tensor with_storage(c10::Storage storage, c10::DispatchKeySet keys, const Tensor& like) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

// A tensor on the CPU in the same memory.
Tensor to_host(const Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != MPS.type()) return tensor;
  auto& storage = tensor.storage();
  auto* owner = new c10::Storage(storage);
  c10::DataPtr data(storage.mutable_data(), owner, [](void* o) { delete static_cast<c10::Storage*>(o); }, c10::kCPU);
  c10::Storage host(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetCPUAllocator(), true);
  return with_storage(host, c10::DispatchKeySet(c10::DispatchKey::CPU), tensor);
}

// A tensor on "mps" in the same memory.
Tensor to_device(const Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() == MPS.type()) return tensor;
  check_dtype(tensor.scalar_type());
  auto& storage = tensor.storage();
  auto* owner = new c10::Storage(storage);
  c10::DataPtr data(storage.mutable_data(), owner, [](void* o) { delete static_cast<c10::Storage*>(o); }, MPS);
  c10::Storage device(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), &allocator, false);
  return with_storage(device, MPS_KEYS, tensor);
}

void check_devices(const std::string& name, const Tensor& tensor) {
  TORCH_CHECK(
      !tensor.defined() || tensor.device().type() == MPS.type() || tensor.dim() == 0,
      "Expected all tensors to be on the same device, but found at least two devices, mps:0 and cpu! (", name, ")");
}

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::string name = schema.name();
  {
    std::lock_guard<std::mutex> lock(names_mutex);
    names.insert(name + (schema.overload_name().empty() ? "" : "." + schema.overload_name()));
  }
  const auto number = schema.arguments().size();
  const auto begin = stack->size() - number;
  std::vector<c10::IValue> arguments(stack->begin() + begin, stack->end());
  for (size_t i = 0; i < number; i++) {
    auto& value = (*stack)[begin + i];
    const auto& type = schema.arguments()[i].type();
    if (value.isTensor()) {
      check_devices(name, value.toTensor());
      value = to_host(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> tensors;
      for (const Tensor& tensor : value.toTensorVector()) {
        check_devices(name, tensor);
        tensors.push_back(to_host(tensor));
      }
      value = c10::IValue(tensors);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> tensors;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector())
        tensors.push_back(tensor ? std::optional<Tensor>(to_host(*tensor)) : std::nullopt);
      value = tensors;
    } else if (value.isDevice()) {
      value = c10::Device(c10::kCPU);
    } else if (value.isNone() && *type == *c10::OptionalType::create(c10::GeneratorType::get())) {
      value = generator();
    }
  }
  if (name == "aten::_scaled_dot_product_attention_math_for_mps") {
    auto host = torch::jit::last(*stack, number);
    auto result = at::_scaled_dot_product_attention_math(
        host[0].toTensor(), host[1].toTensor(), host[2].toTensor(), host[3].toOptional<Tensor>(), host[4].toDouble(),
        host[5].toBool(), host[6].toOptional<Tensor>(), host[7].toOptional<double>());
    torch::jit::drop(*stack, number);
    torch::jit::push(*stack, std::get<0>(result), std::get<1>(result));
  } else {
    op.callBoxed(stack);
  }
  const auto returned = schema.returns().size();
  for (size_t i = 0; i < returned; i++) {
    auto& value = (*stack)[stack->size() - returned + i];
    const auto* alias = schema.returns()[i].alias_info();
    bool is_argument = false;
    if (alias && alias->isWrite()) {  // the argument itself
      for (size_t j = 0; j < number && !is_argument; j++) {
        const auto* other = schema.arguments()[j].alias_info();
        if (other && other->isWrite() && *other == *alias) {
          const Tensor& own = arguments[j].toTensor();
          const Tensor& host = value.toTensor();
          if (own.sizes() != host.sizes()) {  // resized
            auto* impl = own.unsafeGetTensorImpl();
            impl->set_storage_keep_dtype(to_device(host).storage());
            impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
          }
          value = arguments[j];
          is_argument = true;
        }
      }
    }
    if (is_argument) continue;
    if (value.isTensor()) {
      value = to_device(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<Tensor> tensors;
      for (const Tensor& tensor : value.toTensorVector()) tensors.push_back(to_device(tensor));
      value = c10::IValue(tensors);
    }
  }
}

Tensor empty_memory_format(
    c10::SymIntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
    std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  check_dtype(c10::dtype_or_default(dtype));
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator, MPS_KEYS, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
    std::optional<c10::Device>, std::optional<bool>) {
  check_dtype(c10::dtype_or_default(dtype));
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator, MPS_KEYS, c10::dtype_or_default(dtype));
}

Tensor alias_as(const Tensor& self, at::IntArrayRef size, at::IntArrayRef stride, int64_t offset) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), self.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return tensor;
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  return alias_as(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
      offset ? offset->expect_int() : self.storage_offset());
}

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return alias_as(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), self.storage_offset());
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) {
  auto viewed = to_host(self).view(C10_AS_INTARRAYREF_SLOW(size));
  return alias_as(self, viewed.sizes(), viewed.strides(), viewed.storage_offset());
}

Tensor& copy(Tensor& self, const Tensor& source, bool) {
  to_host(self).copy_(to_host(source));
  return self;
}

c10::Scalar local_scalar(const Tensor& self) { return to_host(self).item(); }

// The choice of torch's build for a Mac, which other builds cannot make: single operations, if there are gradients.
Tensor attention(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask, double dropout,
    bool is_causal, std::optional<double> scale, bool enable_gqa) {
  const bool has_gradient = at::GradMode::is_enabled() && (query.requires_grad() || key.requires_grad() || value.requires_grad());
  if (has_gradient || dropout > 0)
    return std::get<0>(at::_scaled_dot_product_attention_math(
        query, key, value, mask, dropout, is_causal, std::nullopt, scale, enable_gqa));
  return std::get<0>(at::_scaled_dot_product_attention_math_for_mps(
      query, key, value, mask, dropout, is_causal, std::nullopt, scale));
}

TORCH_LIBRARY_IMPL(aten, AutogradMPS, m) { m.impl("scaled_dot_product_attention", attention); }
TORCH_LIBRARY_IMPL(aten, MPS, m) {
  m.impl("scaled_dot_product_attention", attention);
  m.impl("empty.memory_format", empty_memory_format);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("view", view);
  m.impl("copy_", copy);
  m.impl("_local_scalar_dense", local_scalar);
}
TORCH_LIBRARY_IMPL(_, MPS, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }
}  // namespace

extern "C" {
// Names of the operations that ran, one a line.
const char* fake_mps_operations() {
  static std::string text;
  std::lock_guard<std::mutex> lock(names_mutex);
  text.clear();
  for (const auto& name : names) text += name + "\n";
  return text.c_str();
}
double fake_mps_memory_fraction() { return memory_fraction; }
}

namespace at {
// the registry looks for this class name
struct MPSHooks : MPSHooksInterface {
  MPSHooks() = default;
  explicit MPSHooks(MPSHooksArgs) {}  // before torch 2.13
  void init() const override {}
  bool hasMPS() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool isOnMacOSorNewer(unsigned, unsigned) const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  const Generator& getDefaultGenerator(DeviceIndex = -1) const override { return generator(); }
  Generator getNewGenerator(DeviceIndex = -1) const override { return at::detail::createCPUGenerator(); }
  ::c10::Allocator* getMPSDeviceAllocator() const override { return &allocator; }
  void deviceSynchronize() const override {}
  void commitStream() const override {}
  void emptyCache() const override {}
  size_t getCurrentAllocatedMemory() const override { return allocated; }
  size_t getDriverAllocatedMemory() const override { return allocated; }
  size_t getRecommendedMaxMemory() const override { return size_t(8) << 30; }
  void setMemoryFraction(double ratio) const override { memory_fraction = ratio; }
};
REGISTER_MPS_HOOKS(MPSHooks)
}  // namespace at
