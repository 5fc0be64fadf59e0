// Counts of events and memory that is handed out, and the functions by which tests read them.
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <mutex>

#include "fake.h"

namespace fake {
namespace {

constexpr size_t alignment = 2 << 20;  // of cudaMalloc and of the pages of expandable segments

struct Block {
  void* mapping;  // `bytes` and the alignment
  size_t bytes;
  Memory kind;
  int device;
  bool is_counted;
};

struct State {
  std::mutex mutex;
  std::map<std::string, long> counts;
  std::map<uintptr_t, Block> blocks;
  size_t used[max_devices] = {};
};

// Never destroyed: torch's libraries register kernels before our static objects exist and free memory after them.
State& state() {
  static State* state = new State;
  return *state;
}

bool use_locked(size_t bytes) {
  size_t& used = state().used[current_device];
  if (used + bytes + context_memory() > total_memory()) return false;
  used += bytes;
  return true;
}

void* map(size_t bytes, Memory kind, bool is_counted) {
  std::lock_guard<std::mutex> guard(state().mutex);
  if (is_counted && !use_locked(bytes)) return nullptr;
  void* mapping = mmap(nullptr, bytes + alignment, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    if (is_counted) state().used[current_device] -= bytes;
    return nullptr;
  }
  uintptr_t address = ((uintptr_t)mapping + alignment - 1) & ~(uintptr_t)(alignment - 1);
  state().blocks[address] = {mapping, bytes, kind, current_device, is_counted};
  return (void*)address;
}

}  // namespace

thread_local int current_device = 0;

long* counter(const std::string& name) {
  std::lock_guard<std::mutex> guard(state().mutex);
  return &state().counts[name];
}

void count(const std::string& name) {
  std::lock_guard<std::mutex> guard(state().mutex);
  ++state().counts[name];
}

void* allocate(size_t bytes, Memory kind) { return map(bytes, kind, kind == Memory::device); }

void* reserve_addresses(size_t bytes) { return map(bytes, Memory::device, false); }

void release(void* pointer) {
  std::lock_guard<std::mutex> guard(state().mutex);
  auto found = state().blocks.find((uintptr_t)pointer);
  if (found == state().blocks.end()) return;
  const Block& block = found->second;
  if (block.is_counted) state().used[block.device] -= block.bytes;
  munmap(block.mapping, block.bytes + alignment);
  state().blocks.erase(found);
}

bool use(size_t bytes) {
  std::lock_guard<std::mutex> guard(state().mutex);
  return use_locked(bytes);
}

void unuse(size_t bytes) {
  std::lock_guard<std::mutex> guard(state().mutex);
  state().used[current_device] -= bytes;
}

size_t used() {
  std::lock_guard<std::mutex> guard(state().mutex);
  return state().used[current_device];
}

Memory kind_of(const void* pointer) {
  std::lock_guard<std::mutex> guard(state().mutex);
  auto after = state().blocks.upper_bound((uintptr_t)pointer);
  if (after == state().blocks.begin()) return Memory::pageable;
  const auto& [address, block] = *--after;
  return (uintptr_t)pointer < address + block.bytes ? block.kind : Memory::pageable;
}

void* new_handle() { return calloc(1, 64); }

}  // namespace fake

// Sets all counts to zero.
API void fakegpu_reset() {
  std::lock_guard<std::mutex> guard(fake::state().mutex);
  for (auto& [name, number] : fake::state().counts) number = 0;
}

// Writes the counts into a file, a line "number<tab>name" for each that is not zero.
API void fakegpu_report(const char* path) {
  std::lock_guard<std::mutex> guard(fake::state().mutex);
  FILE* file = fopen(path, "w");
  for (auto& [name, number] : fake::state().counts)
    if (number) fprintf(file, "%ld\t%s\n", number, name.c_str());
  fclose(file);
}
