// CUDA's driver (libcuda.so.1), as far as torch's expandable segments, Inductor's launchers and Triton use it.
// Functions return CUresult: 0 is success. Those that are not here become stubs.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <string>

#include "fake.h"

namespace {

constexpr int out_of_memory = 2, not_found = 500;
constexpr size_t granularity = 2 << 20;  // of physical memory

struct Function {
  long* launches;
};

char context[64];  // the one primary context

int launch(void* function, void* stream) {
  if (!fake::capture_node(stream)) ++*((Function*)function)->launches;
  return 0;
}

int new_module(void** module) {
  *module = fake::new_handle();
  return 0;
}

}  // namespace

// ---- devices and contexts ----
API int cuInit(unsigned) { return 0; }
API int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}
API int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}
API int cuDeviceGetCount(int* number) {
  *number = fake::visible_devices();
  return 0;
}
API int cuDeviceGetName(char* name, int length, int) {
  snprintf(name, length, "%s", fake::device_name());
  return 0;
}
API int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = fake::total_memory();
  return 0;
}
API int cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {  // CUdevice_attribute; those of a large GPU
    case 1: *value = 1024; break;                     // threads per block
    case 8: *value = 49152; break;                    // shared memory per block
    case 10: *value = 32; break;                      // warp size
    case 12: *value = 65536; break;                   // registers per block
    case 13: *value = 1980000; break;                 // clock in kHz
    case 16: *value = 132; break;                     // multiprocessors
    case 36: *value = 2619000; break;                 // memory clock in kHz
    case 37: *value = 5120; break;                    // bits of the memory bus
    case 39: *value = 2048; break;                    // threads per multiprocessor
    case 75: *value = fake::capability() / 10; break;
    case 76: *value = fake::capability() % 10; break;
    case 81: *value = 233472; break;                  // shared memory per multiprocessor
    case 82: *value = 65536; break;                   // registers per multiprocessor
    case 97: *value = 232448; break;                  // shared memory per block, opt in
    default: *value = 0;
  }
  return 0;
}
API int cuCtxGetCurrent(void** current) {
  *current = context;
  return 0;
}
API int cuCtxSetCurrent(void*) { return 0; }
API int cuCtxGetDevice(int* device) {
  *device = fake::current_device;
  return 0;
}
API int cuDevicePrimaryCtxRetain(void** retained, int) {
  *retained = context;
  return 0;
}
API int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* is_active) {
  *flags = 0;
  *is_active = 1;
  return 0;
}
API int cuGetErrorString(int, const char** text) {
  *text = "error of the fake driver";
  return 0;
}
API int cuGetErrorName(int, const char** name) {
  *name = "CUDA_ERROR_OF_FAKE_GPU";
  return 0;
}
API int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) *function = dlsym(RTLD_DEFAULT, (std::string(name) + "_v2").c_str());
  if (status) *status = *function ? 0 : 1;
  return *function ? 0 : not_found;
}
API int cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}

// ---- modules and kernels, of Triton and Inductor ----
API int cuModuleLoad(void** module, const char*) { return new_module(module); }
API int cuModuleLoadData(void** module, const void*) { return new_module(module); }
API int cuModuleLoadDataEx(void** module, const void*, unsigned, void*, void*) { return new_module(module); }
API int cuModuleUnload(void* module) {
  free(module);
  return 0;
}
API int cuModuleGetFunction(void** function, void*, const char* name) {
  *function = new Function{fake::counter(std::string("kernel: triton ") + name)};
  return 0;
}
API int cuFuncGetAttribute(int* value, int attribute, void*) {
  *value = attribute == 0 ? 1024 : attribute == 4 ? 32 : 0;  // threads per block, registers; no local memory
  return 0;
}
API int cuFuncSetAttribute(void*, int, int) { return 0; }
API int cuFuncSetCacheConfig(void*, int) { return 0; }
API int cuOccupancyMaxActiveClusters(int* number, void*, const void*) {
  *number = 66;
  return 0;
}
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* number, void*, int, size_t) {
  *number = 2;
  return 0;
}
API int cuLaunchKernel(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                       void* stream, void**, void**) {
  return launch(function, stream);
}
API int cuLaunchKernelEx(const void* config, void* function, void**, void**) {
  return launch(function, ((void* const*)config)[4]);  // CUlaunchConfig: seven unsigned, then the stream
}
API int cuStreamSynchronize(void*) {
  if (fake::invalidate_capture("cuStreamSynchronize")) return 900;  // CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
  fake::count("wait: cuStreamSynchronize");
  return 0;
}
API int cuPointerGetAttribute(void* value, int, uint64_t pointer) {
  *(uint64_t*)value = pointer;
  return 0;
}
API int cuPointerGetAttributes(unsigned number, int* attributes, void** values, uint64_t pointer) {
  for (unsigned i = 0; i < number; i++)
    if (attributes[i] == 3) *(uint64_t*)values[i] = pointer;  // CU_POINTER_ATTRIBUTE_DEVICE_POINTER
  return 0;
}

// ---- virtual memory, of expandable segments; the handle of physical memory is its size ----
API int cuMemGetAllocationGranularity(size_t* bytes, const void*, int) {
  *bytes = granularity;
  return 0;
}
API int cuMemAddressReserve(uint64_t* address, size_t bytes, size_t, uint64_t, unsigned long long) {
  *address = (uint64_t)fake::reserve_addresses(bytes);
  return *address ? 0 : out_of_memory;
}
API int cuMemAddressFree(uint64_t address, size_t) {
  fake::release((void*)address);
  return 0;
}
API int cuMemCreate(uint64_t* handle, size_t bytes, const void*, unsigned long long) {
  fake::count("memory: cuMemCreate");
  *handle = bytes;
  return fake::use(bytes) ? 0 : out_of_memory;
}
API int cuMemRelease(uint64_t handle) {
  fake::unuse(handle);
  return 0;
}
