// CUDA's runtime: devices and memory. Memory is address space; copies of more than 64 KiB move nothing.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "fake.h"

using fake::Memory;

namespace {

constexpr size_t largest_copy = 64 << 10;  // small tensors, such as window indices, arrive

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t fail(cudaError_t error) { return last_error = error; }

void move(void* to, const void* from, size_t bytes) {
  if (bytes <= largest_copy) memmove(to, from, bytes);
}

const char* describe(Memory kind) {
  return kind == Memory::device ? "device" : kind == Memory::pinned ? "pinned host" : "pageable host";
}

}  // namespace

// ---- devices ----
API cudaError_t cudaGetDeviceCount(int* number) {
  *number = fake::visible_devices();
  return *number ? cudaSuccess : fail(cudaErrorNoDevice);
}
API cudaError_t cudaGetDevice(int* device) {
  *device = fake::current_device;
  return cudaSuccess;
}
API cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= fake::visible_devices()) return fail(cudaErrorInvalidDevice);
  fake::current_device = device;
  return cudaSuccess;
}
// Properties of a large GPU, besides for name, memory and compute capability.
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "%s", fake::device_name());
  p->uuid.bytes[0] = 1 + device;
  p->pciBusID = device + 1;
  p->totalGlobalMem = fake::total_memory();
  p->major = fake::capability() / 10;
  p->minor = fake::capability() % 10;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->reservedSharedMemPerBlock = 1024;
  p->totalConstMem = 65536;
  p->l2CacheSize = 52428800;
  p->memoryBusWidth = 5120;
  p->memPitch = 2147483647;
  p->textureAlignment = 512;
  p->texturePitchAlignment = 32;
  p->asyncEngineCount = 3;
  p->canMapHostMemory = p->concurrentKernels = p->ECCEnabled = p->unifiedAddressing = 1;
  p->streamPrioritiesSupported = p->globalL1CacheSupported = p->localL1CacheSupported = 1;
  p->managedMemory = p->computePreemptionSupported = p->cooperativeLaunch = 1;
  p->memoryPoolsSupported = p->clusterLaunch = 1;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, device);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = p.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: *value = p.maxThreadsDim[0]; break;
    case cudaDevAttrMaxBlockDimZ: *value = p.maxThreadsDim[2]; break;
    case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = p.maxGridSize[1]; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = p.regsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)p.sharedMemPerMultiprocessor; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = (int)p.reservedSharedMemPerBlock; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrClockRate: *value = 1980000; break;
    case cudaDevAttrMemoryClockRate: *value = 2619000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
    default: *value = 0;
  }
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  snprintf(text, length, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
API cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* result) {
  static void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  *function = driver ? dlsym(driver, name) : nullptr;
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return *function ? cudaSuccess : cudaErrorSymbolNotFound;
}

// ---- errors ----
namespace fake {
void set_last_error(int error) { last_error = (cudaError_t)error; }
}  // namespace fake
API cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
API cudaError_t cudaPeekAtLastError() { return last_error; }
API const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  if (error == cudaErrorNoDevice) return "no CUDA-capable device is detected";
  if (error >= cudaErrorStreamCaptureUnsupported && error <= cudaErrorCapturedEvent)
    return "operation not permitted when stream is capturing";
  return "error of the fake GPU";
}
API const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorOfFakeGpu";
}

// ---- memory ----
API cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  fake::count("memory: cudaMalloc");
  *pointer = fake::allocate(bytes, Memory::device);
  return *pointer ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}
API cudaError_t cudaFree(void* pointer) {
  if (!pointer) return cudaSuccess;
  if (fake::invalidate_capture("cudaFree")) return last_error;
  fake::release(pointer);
  fake::count("wait: cudaFree");
  return cudaSuccess;
}
API cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  fake::count("memory: cudaHostAlloc");
  *pointer = fake::allocate(bytes, Memory::pinned);
  return *pointer ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}
API cudaError_t cudaFreeHost(void* pointer) {
  fake::release(pointer);
  return cudaSuccess;
}
API cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *total_bytes = fake::total_memory();
  *free_bytes = fake::total_memory() - fake::used() - fake::context_memory();
  return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  memset(attributes, 0, sizeof *attributes);
  Memory kind = fake::kind_of(pointer);
  attributes->device = fake::current_device;
  attributes->type = kind == Memory::device   ? cudaMemoryTypeDevice
                     : kind == Memory::pinned ? cudaMemoryTypeHost
                                              : cudaMemoryTypeUnregistered;
  if (kind != Memory::pageable) attributes->devicePointer = (void*)pointer;
  if (kind == Memory::pinned) attributes->hostPointer = (void*)pointer;
  return cudaSuccess;
}
API cudaError_t cudaGetSymbolAddress(void** pointer, const void*) {
  static void* page = fake::reserve_addresses(1 << 20);
  *pointer = page;
  return cudaSuccess;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (fake::invalidate_capture("cudaMemcpy")) return last_error;
  move(to, from, bytes);
  fake::count("wait: cudaMemcpy");
  return cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  Memory source = fake::kind_of(from), target = fake::kind_of(to);
  bool waits = source == Memory::pageable || target == Memory::pageable;
  if (waits && fake::invalidate_capture("a copy of pageable memory", stream)) return last_error;
  if (fake::capture_node(stream)) return cudaSuccess;
  move(to, from, bytes);
  fake::count(std::string(waits ? "wait: copy of " : "copy: ") + describe(source) + " to " + describe(target));
  return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  if (fake::capture_node(stream)) return cudaSuccess;
  if (bytes <= largest_copy) memset(pointer, value, bytes);
  fake::count("kernel: memset");
  return cudaSuccess;
}
API cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
  return cudaMemsetAsync(pointer, value, bytes, nullptr);
}
