// NCCL without a network: collectives succeed at once and move nothing, except that small all-gathers repeat a rank's
// own data, which lets DDP's comparison of shapes between ranks succeed. Functions that are not here become stubs.
#include <cstring>

#include "fake.h"

namespace {

struct UniqueId {
  char bytes[128];
};

struct Communicator {
  int ranks, rank;
};

size_t bytes_per_item(int type) {  // ncclDataType_t
  static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return sizes[type];
}

int create(void** communicator, int ranks, int rank) {
  *communicator = new Communicator{ranks, rank};
  fake::count("nccl: init");
  return 0;
}

}  // namespace

API int ncclGetVersion(int* version) {
  *version = 22907;
  return 0;
}
API const char* ncclGetErrorString(int) { return "error of the fake NCCL"; }
API const char* ncclGetLastError(void*) { return "error of the fake NCCL"; }
API int ncclGetUniqueId(UniqueId* id) {
  memset(id, 7, sizeof *id);
  return 0;
}
API int ncclCommInitRank(void** communicator, int ranks, UniqueId, int rank) {
  return create(communicator, ranks, rank);
}
API int ncclCommInitRankConfig(void** communicator, int ranks, UniqueId, int rank, void*) {
  return create(communicator, ranks, rank);
}
API int ncclCommInitRankScalable(void** communicator, int ranks, int rank, int, UniqueId*, void*) {
  return create(communicator, ranks, rank);
}
API int ncclCommSplit(Communicator* parent, int, int, void** communicator, void*) {
  return create(communicator, parent->ranks, parent->rank);
}
API int ncclCommGetAsyncError(void*, int* error) {
  *error = 0;
  return 0;
}
API int ncclCommCount(Communicator* communicator, int* number) {
  *number = communicator->ranks;
  return 0;
}
API int ncclCommUserRank(Communicator* communicator, int* rank) {
  *rank = communicator->rank;
  return 0;
}
API int ncclCommCuDevice(void*, int* device) {
  *device = fake::current_device;
  return 0;
}
API int ncclAllReduce(const void*, void*, size_t, int, int, void*, void*) {
  fake::count("nccl: all-reduce");
  return 0;
}
API int ncclBroadcast(const void*, void*, size_t, int, int, void*, void*) {
  fake::count("nccl: broadcast");
  return 0;
}
API int ncclAllGather(const char* from, char* to, size_t number, int type, Communicator* communicator, void*) {
  size_t bytes = number * bytes_per_item(type);
  for (int rank = 0; rank < communicator->ranks && bytes <= 64 << 10; rank++)
    if (to + rank * bytes != from) memmove(to + rank * bytes, from, bytes);
  fake::count("nccl: all-gather");
  return 0;
}
