// State that the parts of the fake GPU share: counts of events, memory that is handed out, and stream capture.
#pragma once
#include <cstddef>
#include <string>

#include "options.h"

#define API extern "C" __attribute__((visibility("default")))

namespace fake {

// ---- counts (state.cpp) ----
// Names begin with "kernel: ", "wait: " (of the host for the device), "copy: ", "memory: ", "graph: ", "nccl: " or
// "stub: " (a function that does nothing but succeed).

// Returns the count of a name, which stays valid; hot paths keep it.
long* counter(const std::string& name);
void count(const std::string& name);

// ---- memory (state.cpp) ----
enum class Memory { pageable, device, pinned };

extern thread_local int current_device;

// Returns address space that is zero where it is read and takes no memory until it is written; null if the current
// device has less left.
void* allocate(size_t bytes, Memory kind);
void release(void* pointer);
// Reserves address space of the current device without using its memory.
void* reserve_addresses(size_t bytes);
// Uses memory of the current device, or returns false if it has less left.
bool use(size_t bytes);
void unuse(size_t bytes);
size_t used();
Memory kind_of(const void* pointer);

// Returns a new opaque object of the runtime, zeroed, with room for 64 bytes; freed by free().
void* new_handle();

// ---- stream capture (streams.cpp) ----
// Adds a node to the capture of a stream and returns true, or returns false if the work is to run now. Work in the
// default stream (null) invalidates a capture that is under way: on a GPU, the graph would lack it.
bool capture_node(void* stream);
// Invalidates the capture that is under way and returns true, or returns false if the wait is allowed: another thread
// may wait (captures are thread-local in raylm), except for the captured stream.
bool invalidate_capture(const char* wait, void* stream = nullptr);

}  // namespace fake
