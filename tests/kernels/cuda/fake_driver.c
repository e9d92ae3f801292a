/* A stand-in for libcuda.so.1 where there is no driver: it writes down what it is asked, in the file that
 * FAKE_DRIVER_LOG names, one call a line, and answers that all went well. So the bytes that would reach a device can be
 * looked at. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, NOT_SUPPORTED = 801 };
enum { MAP_BYTES = 128, MMA = 0x111, WGMMA = 0x222, CONTEXT = 0x333 };

static uintptr_t current_context = 0;

static void put(const char* format, ...) {
  FILE* log = fopen(getenv("FAKE_DRIVER_LOG"), "a");
  va_list arguments;
  va_start(arguments, format);
  vfprintf(log, format, arguments);
  va_end(arguments);
  fclose(log);
}

static void put_hex(const void* bytes, int count) {
  put(" ");
  for (int i = 0; i < count; ++i) put("%02x", ((const unsigned char*)bytes)[i]);
}

static int unsupported(void) { return NOT_SUPPORTED; }

int cuInit(unsigned flags) { return SUCCESS; }
int cuDriverGetVersion(int* version) { return *version = 12090, SUCCESS; }
int cuCtxGetCurrent(uintptr_t* context) { return *context = current_context, SUCCESS; }
int cuDeviceGet(int* device, int ordinal) { return *device = 40 + ordinal, SUCCESS; }

int cuDevicePrimaryCtxRetain(uintptr_t* context, int device) {
  put("cuDevicePrimaryCtxRetain %d\n", device);
  return *context = CONTEXT, SUCCESS;
}

int cuCtxSetCurrent(uintptr_t context) {
  put("cuCtxSetCurrent %lx\n", (unsigned long)context);
  return current_context = context, SUCCESS;
}

int cuThreadExchangeStreamCaptureMode(int* mode) {
  put("cuThreadExchangeStreamCaptureMode %d\n", *mode);
  return *mode = 0, SUCCESS;
}

int cuLibraryLoadData(uintptr_t* library, const char* code, void* a, void* b, unsigned c, void* d, void* e, unsigned f) {
  put("cuLibraryLoadData %s\n", code);
  if (strcmp(code, "broken") == 0) return INVALID_IMAGE;
  return *library = 1, SUCCESS;
}

int cuLibraryGetKernel(uintptr_t* kernel, uintptr_t library, const char* name) {
  put("cuLibraryGetKernel %s\n", name);
  return *kernel = strstr(name, "wgmma") ? WGMMA : MMA, SUCCESS;
}

int cuKernelSetAttribute(int attribute, int value, uintptr_t kernel, int device) {
  put("cuKernelSetAttribute %d %d %lx %d\n", attribute, value, (unsigned long)kernel, device);
  return SUCCESS;
}

/* The descriptor, in a layout of our own that the test reads back. */
struct Map {
  int32_t dtype, rank;
  uint64_t address, sizes[5], strides[4];
  uint32_t box[5], steps, interleave, swizzle, promotion, fill;
};
_Static_assert(sizeof(struct Map) == MAP_BYTES, "a CUtensorMap has 128 bytes");

int cuTensorMapEncodeTiled(struct Map* map, int dtype, uint32_t rank, uint64_t address, const uint64_t* sizes,
                           const uint64_t* strides, const uint32_t* box, const uint32_t* steps, int interleave,
                           int swizzle, int promotion, int fill) {
  struct Map made = {.dtype = dtype, .rank = rank, .address = address, .interleave = interleave, .swizzle = swizzle,
                     .promotion = promotion, .fill = fill};
  for (uint32_t i = 0; i < rank; ++i) made.sizes[i] = sizes[i], made.box[i] = box[i], made.steps += steps[i];
  for (uint32_t i = 0; i + 1 < rank; ++i) made.strides[i] = strides[i];
  if ((uintptr_t)map % 64) return INVALID_VALUE; /* as the driver's documentation asks */
  put("cuTensorMapEncodeTiled\n");
  return *map = made, SUCCESS;
}

int cuLaunchKernel(uintptr_t kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, uintptr_t stream, void** params, void** extra) {
  put("cuLaunchKernel %lx %u %u %u %u %u %u %u %lx", (unsigned long)kernel, gx, gy, gz, bx, by, bz, shared,
      (unsigned long)stream);
  put_hex(params[0], PARAMS_BYTES);
  for (int i = 1; kernel == WGMMA && i < 4; ++i) put_hex(params[i], MAP_BYTES);
  put("\n");
  return SUCCESS;
}

int cuGetProcAddress_v2(const char* symbol, void** function, int version, uint64_t flags, int* status) {
  *function = dlsym(RTLD_DEFAULT, symbol);
  if (strcmp(symbol, "cuGetProcAddress") == 0) *function = (void*)cuGetProcAddress_v2;
  if (*function == NULL) *function = (void*)unsupported;
  if (status != NULL) *status = 0;
  return SUCCESS;
}
