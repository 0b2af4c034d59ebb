/* A stand-in for the CUDA driver's library, for the tests: device memory is host memory, and a graph calls back. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void (*launched_fn)(void);
static int live = 0, capturing = 0, fail_capture = 0, fail_end = 0, copies = 0;
static launched_fn launched = NULL;
struct event { double ms; int asked; };

int stand_in_live(void) { return live; }
int stand_in_copies(void) { return copies; }
int stand_in_capturing(void) { return capturing; }
void stand_in_fail(int begin, int end) { fail_capture = begin; fail_end = end; }
void stand_in_on_launch(launched_fn call) { launched = call; }

int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &live; return 0; }
int cuCtxSetCurrent(void *context) { return context == &live ? 0 : 201; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Stand-in GPU", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1u << 30; return 0; }
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 6 : attribute == 18 ? 0 : 1500000;
  return 0;
}
int cuGetErrorString(int code, const char **text) { *text = code == 2 ? "out of memory" : "unknown"; return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
  if (size > (1u << 28)) return 2;
  *address = (uint64_t)(uintptr_t)malloc(size); live++; return 0;
}
int cuMemFree_v2(uint64_t address) { free((void *)(uintptr_t)address); live--; return 0; }
int cuMemAllocHost_v2(void **address, size_t size) { *address = malloc(size); live++; return 0; }
int cuMemFreeHost(void *address) { free(address); live--; return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
  memcpy((void *)(uintptr_t)to, from, size); copies++; return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
  memcpy(to, (void *)(uintptr_t)from, size); copies++; return 0;
}
int cuStreamCreate(void **stream, unsigned flags) { *stream = malloc(8); live++; return 0; }
int cuStreamDestroy_v2(void *stream) { free(stream); live--; return 0; }
int cuStreamSynchronize(void *stream) { return capturing ? 900 : 0; }
int cuStreamBeginCapture_v2(void *stream, int mode) { if (fail_capture) return 801; capturing = 1; return 0; }
int cuStreamEndCapture(void *stream, void **graph) {
  if (!capturing) { *graph = NULL; return 901; }
  capturing = 0;
  if (fail_end) { *graph = NULL; return 906; }
  *graph = malloc(8); live++; return 0;
}
int cuGraphInstantiateWithFlags(void **ready, void *graph, unsigned long long flags) { *ready = malloc(8); live++; return 0; }
int cuGraphDestroy(void *graph) { free(graph); live--; return 0; }
int cuGraphExecDestroy(void *ready) { free(ready); live--; return 0; }
int cuGraphLaunch(void *ready, void *stream) { if (launched) launched(); return 0; }
int cuEventCreate(void **event, unsigned flags) { *event = calloc(1, sizeof(struct event)); live++; return 0; }
int cuEventDestroy_v2(void *event) { free(event); live--; return 0; }
int cuEventRecord(void *event, void *stream) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  ((struct event *)event)->ms = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
  ((struct event *)event)->asked = 0;
  return 0;
}
int cuEventQuery(void *event) { return ((struct event *)event)->asked++ ? 0 : 600; }
int cuEventSynchronize(void *event) { return 0; }
int cuEventElapsedTime(float *ms, void *first, void *last) {
  *ms = (float)(((struct event *)last)->ms - ((struct event *)first)->ms); return 0;
}
