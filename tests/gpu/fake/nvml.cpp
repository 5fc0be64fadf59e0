// NVML (libnvidia-ml.so.1), by which Ray and torch count GPUs. Functions return nvmlReturn_t: 0 is success.
#include <cstdio>

#include "fake.h"

namespace {

constexpr int not_supported = 3;

struct MemoryInfo {
  unsigned long long total, free, used;
};

int get_handle(unsigned index, void** handle) {
  *handle = (void*)(size_t)(index + 1);
  return 0;
}

int count_devices(unsigned* number) {
  *number = fake::physical_devices();
  return 0;
}

int no_processes(unsigned* number) {
  *number = 0;
  return 0;
}

}  // namespace

API int nvmlInit() { return 0; }
API int nvmlInit_v2() { return 0; }
API int nvmlInitWithFlags(unsigned) { return 0; }
API int nvmlShutdown() { return 0; }
API const char* nvmlErrorString(int) { return "error of the fake NVML"; }
API int nvmlSystemGetDriverVersion(char* text, unsigned length) {
  snprintf(text, length, "580.65");
  return 0;
}
API int nvmlDeviceGetCount(unsigned* number) { return count_devices(number); }
API int nvmlDeviceGetCount_v2(unsigned* number) { return count_devices(number); }
API int nvmlDeviceGetHandleByIndex(unsigned index, void** handle) { return get_handle(index, handle); }
API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) { return get_handle(index, handle); }
API int nvmlDeviceGetHandleByPciBusId_v2(const char*, void** handle) { return get_handle(0, handle); }
API int nvmlDeviceGetIndex(void* handle, unsigned* index) {
  *index = (unsigned)((size_t)handle - 1);
  return 0;
}
API int nvmlDeviceGetName(void*, char* text, unsigned length) {
  snprintf(text, length, "%s", fake::device_name());
  return 0;
}
API int nvmlDeviceGetUUID(void* handle, char* text, unsigned length) {
  snprintf(text, length, "GPU-000000%02zu-0000-0000-0000-000000000000", (size_t)handle);
  return 0;
}
API int nvmlDeviceGetCudaComputeCapability(void*, int* major, int* minor) {
  *major = fake::capability() / 10;
  *minor = fake::capability() % 10;
  return 0;
}
API int nvmlDeviceGetMemoryInfo(void*, MemoryInfo* info) {
  info->total = fake::total_memory();
  info->used = fake::context_memory();
  info->free = info->total - info->used;
  return 0;
}
API int nvmlDeviceGetUtilizationRates(void*, unsigned* rates) {
  rates[0] = rates[1] = 0;
  return 0;
}
API int nvmlDeviceGetComputeRunningProcesses(void*, unsigned* number, void*) { return no_processes(number); }
API int nvmlDeviceGetComputeRunningProcesses_v2(void*, unsigned* number, void*) { return no_processes(number); }
API int nvmlDeviceGetComputeRunningProcesses_v3(void*, unsigned* number, void*) { return no_processes(number); }
API int nvmlDeviceGetGraphicsRunningProcesses(void*, unsigned* number, void*) { return no_processes(number); }
API int nvmlDeviceGetGraphicsRunningProcesses_v2(void*, unsigned* number, void*) { return no_processes(number); }
API int nvmlDeviceGetGraphicsRunningProcesses_v3(void*, unsigned* number, void*) { return no_processes(number); }
API int nvmlDeviceGetMigMode(void*, unsigned*, unsigned*) { return not_supported; }
API int nvmlDeviceGetGpuFabricInfoV(void*, void*) { return 0; }  // zeros: no fabric
API int nvmlDeviceGetNvLinkRemoteDeviceType() { return not_supported; }
API int nvmlDeviceGetNvLinkRemotePciInfo_v2() { return not_supported; }
API int nvmlSystemGetCudaDriverVersion_v2() { return not_supported; }
