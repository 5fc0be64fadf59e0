// Streams, events and CUDA graphs of the fake GPU. Captured work is counted as nodes and does not run; a launch of the
// graph counts its nodes again. One capture at a time is possible in a process.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <mutex>
#include <thread>

#include "fake.h"

namespace fake {

void set_last_error(int error);

namespace {

struct Graph {
  long nodes = 0;
};

struct Capture {
  cudaStream_t stream = nullptr;
  Graph* graph = nullptr;  // null if none is under way
  unsigned long long id = 0;
  std::thread::id thread;
  bool is_invalid = false;
};

std::mutex& capture_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

Capture& capture() {
  static auto* capture = new Capture;
  return *capture;
}

void invalidate(cudaError_t error, const std::string& cause) {
  capture().is_invalid = true;
  set_last_error(error);
  count("graph: capture invalidated by " + cause);
  if (getenv("FAKE_GPU_VERBOSE")) fprintf(stderr, "fake GPU: capture invalidated by %s\n", cause.c_str());
}

cudaStreamCaptureStatus status_of(cudaStream_t stream) {
  if (!capture().graph || stream != capture().stream) return cudaStreamCaptureStatusNone;
  return capture().is_invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}

cudaError_t fail(cudaError_t error) {
  set_last_error(error);
  return error;
}

cudaError_t wait(const char* name, cudaStream_t stream = nullptr) {
  if (invalidate_capture(name, stream)) return cudaErrorStreamCaptureUnsupported;
  count(std::string("wait: ") + name);
  return cudaSuccess;
}

}  // namespace

bool capture_node(void* stream) {
  std::lock_guard<std::mutex> guard(capture_mutex());
  if (!capture().graph) return false;
  if (!stream) {
    invalidate(cudaErrorStreamCaptureImplicit, "work in the default stream");
    return true;
  }
  if ((cudaStream_t)stream != capture().stream) return false;
  ++capture().graph->nodes;
  return true;
}

bool invalidate_capture(const char* wait, void* stream) {
  std::lock_guard<std::mutex> guard(capture_mutex());
  bool is_captured = std::this_thread::get_id() == capture().thread || (cudaStream_t)stream == capture().stream;
  if (!capture().graph || !is_captured) return false;
  invalidate(cudaErrorStreamCaptureUnsupported, wait);
  return true;
}

}  // namespace fake

using fake::capture;
using fake::Graph;

// ---- streams and events ----
API cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = (cudaStream_t)fake::new_handle();
  return cudaSuccess;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return cudaStreamCreate(stream); }
API cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream == capture().stream) return fake::wait("cudaStreamSynchronize", stream);  // or no capture, and null
  fake::count("wait: cudaStreamSynchronize");
  return cudaSuccess;
}
API cudaError_t cudaDeviceSynchronize() { return fake::wait("cudaDeviceSynchronize"); }
API cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = (cudaEvent_t)fake::new_handle();
  return cudaSuccess;
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t) { return fake::wait("cudaEventSynchronize"); }
API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1.0f;
  return cudaSuccess;
}

// ---- capture ----
API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  *mode = cudaStreamCaptureModeGlobal;
  return cudaSuccess;
}
API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  std::lock_guard<std::mutex> guard(fake::capture_mutex());
  static unsigned long long captures = 0;
  if (capture().graph || !stream) return fake::fail(cudaErrorStreamCaptureUnsupported);
  capture() = {stream, new Graph, ++captures, std::this_thread::get_id(), false};
  fake::count("graph: capture");
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  std::lock_guard<std::mutex> guard(fake::capture_mutex());
  auto ended = capture();
  capture() = {};
  if (!ended.is_invalid) {
    *graph = (cudaGraph_t)ended.graph;
    return cudaSuccess;
  }
  delete ended.graph;
  *graph = nullptr;
  return fake::fail(cudaErrorStreamCaptureInvalidated);
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  std::lock_guard<std::mutex> guard(fake::capture_mutex());
  *status = fake::status_of(stream);
  return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                         cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                         const cudaGraphEdgeData** edges, size_t* number) {
  std::lock_guard<std::mutex> guard(fake::capture_mutex());
  *status = fake::status_of(stream);
  if (id) *id = *status ? capture().id : 0;
  if (graph) *graph = (cudaGraph_t)capture().graph;
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (number) *number = 0;
  return cudaSuccess;
}

// ---- graphs ----
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* number) {
  if (!nodes) *number = ((Graph*)graph)->nodes;
  return cudaSuccess;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = (cudaGraphExec_t) new Graph(*(Graph*)graph);
  return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete (Graph*)graph;
  return cudaSuccess;
}
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete (Graph*)executable;
  return cudaSuccess;
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  static long* const launches = fake::counter("graph: launch");
  static long* const nodes = fake::counter("kernel: node of a graph");
  ++*launches;
  *nodes += ((Graph*)executable)->nodes;
  return cudaSuccess;
}
