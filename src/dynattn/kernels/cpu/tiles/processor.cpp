// Asks the processor and the operating system whether they support tiles.
#include "tiles/processor.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <stdint.h>
#include <string.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dynattn {

namespace {

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf leaf(unsigned number, unsigned part) {
  Leaf of;
  __get_cpuid_count(number, part, &of.eax, &of.ebx, &of.ecx, &of.edx);
  return of;
}

// State that the operating system saves: bits of XCR0.
uint64_t saved_state() {
  if ((leaf(1, 0).ecx & bit_OSXSAVE) == 0) return 0;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

constexpr uint64_t kTileState = uint64_t{3} << 17;   // configuration and data
constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // of leaf 7, EDX
constexpr unsigned kAvx512Bf16 = 1u << 5;            // of leaf 7, part 1, EAX

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

const char* find_amx_refusal() {
  constexpr unsigned kAmx = kAmxBf16 | kAmxTile;
  if ((leaf(7, 0).edx & kAmx) != kAmx) return "this processor has no AMX for bfloat16";
  if (avx512bf16_refusal() != nullptr) return avx512bf16_refusal();
  if ((saved_state() & kTileState) != kTileState) return "the operating system does not save AMX tiles";
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
    return "the operating system refuses permission to use AMX tiles (arch_prctl(ARCH_REQ_XCOMP_PERM))";
  }
  return nullptr;
#else
  return "permission to use AMX tiles is asked for on Linux only";
#endif
}

}  // namespace

const char* amx_refusal() {
  static const char* const refusal = find_amx_refusal();
  return refusal;
}

const char* avx512bf16_refusal() {
  const bool has = has_avx512() && leaf(7, 0).eax >= 1 && (leaf(7, 1).eax & kAvx512Bf16) != 0;
  return has ? nullptr : "this processor has no AVX-512 with products of bfloat16 numbers";
}

bool avx512bf16_pays() {
  if (avx512bf16_refusal() != nullptr) return false;
  const Leaf vendor = leaf(0, 0);
  return vendor.ebx == signature_AMD_ebx && vendor.ecx == signature_AMD_ecx && vendor.edx == signature_AMD_edx;
}

}  // namespace dynattn

#else

namespace dynattn {

const char* amx_refusal() { return "AMX is of x86-64"; }
const char* avx512bf16_refusal() { return "AVX-512 is of x86-64"; }
bool avx512bf16_pays() { return false; }

}  // namespace dynattn

#endif
