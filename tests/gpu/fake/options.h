// Options of the fake GPU, read from the environment of each process when first needed.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace fake {

constexpr int max_devices = 16;

inline const char* option(const char* name, const char* fallback) {
  const char* value = getenv(name);
  return value && *value ? value : fallback;
}

// GPUs of the machine: FAKE_GPU_COUNT.
inline int physical_devices() { return std::min(max_devices, atoi(option("FAKE_GPU_COUNT", "1"))); }

// GPUs that CUDA shows to this process: as many as CUDA_VISIBLE_DEVICES lists, which are all alike.
inline int visible_devices() {
  static const int number = [] {
    const char* list = getenv("CUDA_VISIBLE_DEVICES");
    if (!list) return physical_devices();
    if (!*list || *list == '-') return 0;
    return std::min(physical_devices(), 1 + (int)std::count(list, list + strlen(list), ','));
  }();
  return number;
}

// Memory of each GPU in bytes: FAKE_GPU_GIB.
inline size_t total_memory() {
  static const size_t bytes = (size_t)(atof(option("FAKE_GPU_GIB", "79.2")) * (1ull << 30));
  return bytes;
}

// Memory of a process that torch's allocator does not manage, in bytes: FAKE_GPU_CONTEXT_MIB.
inline size_t context_memory() {
  static const size_t bytes = (size_t)atol(option("FAKE_GPU_CONTEXT_MIB", "520")) << 20;
  return bytes;
}

// Compute capability times ten: FAKE_GPU_CAPABILITY.
inline int capability() {
  static const int value = atoi(option("FAKE_GPU_CAPABILITY", "80"));
  return value;
}

// FAKE_GPU_NAME
inline const char* device_name() { return option("FAKE_GPU_NAME", "NVIDIA A100-SXM4-80GB"); }

}  // namespace fake
