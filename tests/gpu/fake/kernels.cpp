// Kernels of torch's libraries and products of cuBLAS: counted by name, never run.
#include <cuda_runtime_api.h>
#include <cxxabi.h>

#include <cstdint>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "fake.h"

namespace {

struct LaunchConfig {
  dim3 grid, block;
  size_t shared_memory;
  cudaStream_t stream;
};

thread_local std::vector<LaunchConfig> pending_launches;

struct Kernels {
  std::mutex mutex;
  std::unordered_map<const void*, std::string> names;  // mangled, by host function
  std::unordered_map<const void*, long*> counters;
};

Kernels& kernels() {
  static auto* kernels = new Kernels;
  return *kernels;
}

std::string demangle(const std::string& mangled) {
  int status;
  char* text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? text : mangled;
  free(text);
  return name;
}

cudaError_t launch(const void* function, cudaStream_t stream) {
  if (fake::capture_node(stream)) return cudaSuccess;
  std::lock_guard<std::mutex> guard(kernels().mutex);
  long*& number = kernels().counters[function];
  if (!number) {
    auto found = kernels().names.find(function);
    number = fake::counter("kernel: " + (found == kernels().names.end() ? "?" : demangle(found->second)));
  }
  ++*number;
  return cudaSuccess;
}

}  // namespace

// ---- registration, by code that nvcc generates ----
API void** __cudaRegisterFatBinary(void*) {
  static void* binary[8];
  return binary;
}
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*,
                                dim3*, int*) {
  std::lock_guard<std::mutex> guard(kernels().mutex);
  kernels().names[function] = name;
}

// ---- launches ----
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_memory, cudaStream_t stream) {
  pending_launches.push_back({grid, block, shared_memory, stream});
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_memory, void* stream) {
  LaunchConfig config = pending_launches.back();
  pending_launches.pop_back();
  *grid = config.grid;
  *block = config.block;
  *shared_memory = config.shared_memory;
  *(cudaStream_t*)stream = config.stream;
  return cudaSuccess;
}
API cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return launch(function, stream);
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return launch((const void*)kernel, stream);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void**) {
  return launch(function, config->stream);
}
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = fake::capability();
  attributes->maxDynamicSharedSizeBytes = 232448;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* number, const void*, int, size_t,
                                                                       unsigned) {
  *number = 2;
  return cudaSuccess;
}

// ---- cuBLAS: a handle begins with its stream; status 0 is success ----
namespace {

struct BlasHandle {
  cudaStream_t stream;
};

struct Heuristic {  // cublasLtMatmulHeuristicResult_t
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

int multiply(long* number, cudaStream_t stream) {
  if (!fake::capture_node(stream)) ++*number;
  return 0;
}

}  // namespace

#define PRODUCT(function)                                                    \
  API int function(BlasHandle* handle, ...) {                                \
    static long* const number = fake::counter("kernel: " #function);         \
    return multiply(number, handle->stream);                                 \
  }

API int cublasCreate_v2(void** handle) {
  *handle = fake::new_handle();
  return 0;
}
API int cublasSetStream_v2(BlasHandle* handle, cudaStream_t stream) {
  handle->stream = stream;
  return 0;
}
API int cublasGetMathMode(void*, int* mode) {
  *mode = 0;
  return 0;
}
API int cublasGetPointerMode_v2(void*, int* mode) {
  *mode = 0;
  return 0;
}
PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasSdot_v2)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemmStridedBatched)

API size_t cublasLtGetVersion() { return 130101; }
API int cublasLtMatrixLayoutCreate(void** layout, int, uint64_t, uint64_t, int64_t) {
  *layout = fake::new_handle();
  return 0;
}
API int cublasLtMatrixLayoutDestroy(void* layout) {
  free(layout);
  return 0;
}
API int cublasLtMatmulDescCreate(void** description, int, int) {
  *description = fake::new_handle();
  return 0;
}
API int cublasLtMatmulDescDestroy(void* description) {
  free(description);
  return 0;
}
API int cublasLtMatmulPreferenceCreate(void** preference) {
  *preference = fake::new_handle();
  return 0;
}
API int cublasLtMatmulPreferenceDestroy(void* preference) {
  free(preference);
  return 0;
}
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, Heuristic* result,
                                       int* number) {
  memset(result, 0, sizeof *result);
  *number = 1;
  return 0;
}
API int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*,
                       void*, void*, void*, const void*, void*, size_t, cudaStream_t stream) {
  static long* const number = fake::counter("kernel: cublasLtMatmul");
  return multiply(number, stream);
}
