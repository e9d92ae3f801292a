// The C interface: checks, then the build of the kernels that the caller asked for.
#include <atomic>
#include <chrono>

#include "common/builds.h"
#include "common/team.h"
#include "dynattn_cpu.h"
#include "tiles/processor.h"
#include "tiles/self_check.h"

namespace {

constexpr int32_t kMaxM = 32;
constexpr int32_t kMaxStride = 64;
constexpr int32_t kMaxGroupSpan = 256;  // m · stride
constexpr int32_t kMaxBlockSize = 1024;
constexpr int64_t kFinestShare = 1000000;  // denominators, so that products with lengths do not overflow

struct Isa {
  int32_t (*nm_forward)(const NMForwardArgs& args);
  int32_t (*row_forward)(const RowForwardArgs& args);
  int32_t (*nm_backward)(const NMBackwardArgs& args);
  double (*fma_chains)(int64_t rounds);
};

constexpr char kNotBuilt[] = "this library was built for other processors";

#define DYNATTN_ISA(name) \
  {dynattn::name::nm_forward, dynattn::name::row_forward, dynattn::name::nm_backward, dynattn::name::fma_chains}
#define DYNATTN_TILES(name) {dynattn::name::nm_forward, nullptr, dynattn::name::nm_backward, nullptr}

// In the order of DYNATTN_ISA_*.
#ifdef DYNATTN_X86_KERNELS
constexpr Isa kIsas[] = {DYNATTN_ISA(portable),         DYNATTN_ISA(avx2),
                         DYNATTN_ISA(avx512),           DYNATTN_TILES(tiles_portable),
                         DYNATTN_TILES(tiles_avx512bf16), DYNATTN_TILES(tiles_amx)};

const char* refusal(int32_t isa) {
  switch (isa) {
    case DYNATTN_ISA_PORTABLE:
    case DYNATTN_ISA_TILES_PORTABLE:
      return nullptr;
    case DYNATTN_ISA_AVX2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? nullptr : "this processor has no AVX2";
    case DYNATTN_ISA_AVX512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
                 ? nullptr
                 : "this processor has no AVX-512";
    case DYNATTN_ISA_AVX512BF16:
      return dynattn::avx512bf16_refusal();
    case DYNATTN_ISA_AMX:
      return dynattn::amx_refusal();
    case DYNATTN_ISA_NEON:
      return kNotBuilt;
  }
  return "there is no such instruction set";
}
#else
constexpr Isa kNone = {};
#ifdef DYNATTN_NEON_KERNELS
constexpr Isa kNeon = DYNATTN_ISA(neon);
#else
constexpr Isa kNeon = kNone;
#endif
constexpr Isa kIsas[] = {DYNATTN_ISA(portable), kNone, kNone, DYNATTN_TILES(tiles_portable), kNone, kNone, kNeon};

const char* refusal(int32_t isa) {
  if (isa < 0 || isa >= static_cast<int32_t>(sizeof kIsas / sizeof kIsas[0])) return "there is no such instruction set";
  return kIsas[isa].nm_forward != nullptr ? nullptr : kNotBuilt;
}
#endif

#define DYNATTN_TILE_KERNELS(name) {dynattn::name::nm_forward, dynattn::name::nm_backward, dynattn::name::multiply}
constexpr dynattn::TileKernels kPortableTiles = DYNATTN_TILE_KERNELS(tiles_portable);

// VDPBF16PS sums in an order of its own.
const char* disagreement(int32_t isa) {
#ifdef DYNATTN_X86_KERNELS
  if (isa == DYNATTN_ISA_AMX) return dynattn::tile_disagreement(DYNATTN_TILE_KERNELS(tiles_amx), kPortableTiles, true);
  if (isa == DYNATTN_ISA_AVX512BF16) {
    return dynattn::tile_disagreement(DYNATTN_TILE_KERNELS(tiles_avx512bf16), kPortableTiles, false);
  }
#endif
  return dynattn::tile_disagreement(kPortableTiles, kPortableTiles, true);
}

bool runs(int32_t isa) { return refusal(isa) == nullptr; }

bool is_tiled(int32_t isa) { return isa >= DYNATTN_ISA_TILES_PORTABLE && isa <= DYNATTN_ISA_AMX; }

bool is_storage(int32_t dtype) { return dtype >= DYNATTN_FLOAT32 && dtype <= DYNATTN_FLOAT16; }

// The callers have checked what their users gave them; this keeps a mistake of theirs from reaching memory.
bool is_sound(const NMForwardArgs& args) {
  const bool sizes = args.batch >= 0 && args.heads >= 1 && args.kv_heads >= 1 && args.heads % args.kv_heads == 0 &&
                     args.q_len >= 0 && args.kv_len >= 0 && args.head_dim >= 1 &&
                     args.head_dim <= DYNATTN_MAX_HEAD_DIM && args.value_dim >= 1 &&
                     args.value_dim <= DYNATTN_MAX_HEAD_DIM;
  const bool pattern = args.m >= 1 && args.m <= kMaxM && args.n >= 1 && args.n <= args.m && args.window >= 0 &&
                       args.sinks >= 0 && args.stride >= 1 && args.stride <= kMaxStride &&
                       args.m * args.stride <= kMaxGroupSpan;
  const bool dtypes = is_storage(args.dtype) &&
                      (args.mask == nullptr || is_storage(args.mask_dtype) || args.mask_dtype == DYNATTN_BOOL);
  const bool counts =
      (args.kept_mass == nullptr) == (args.kept == nullptr) && (args.kept == nullptr) == (args.allowed == nullptr);
  const bool blocks = args.blocks == nullptr || (args.block_size >= 1 && args.block_size <= kMaxBlockSize);
  const bool scale = args.scale != 0.0f && args.scale - args.scale == 0.0f;
  const bool dropout =
      (args.drop_below == 0 || args.keep_factor >= 1.0f) && args.first_batch >= 0 && args.first_head >= 0;
  return sizes && pattern && dtypes && counts && blocks && scale && dropout && args.threads >= 1;
}

bool is_sound(const RowForwardArgs& args) {
  const NMForwardArgs& call = args.call;
  const bool dense = call.n == 1 && call.m == 1 && call.blocks == nullptr;
  const bool outputs = call.batch * call.q_len == 0 || (call.threshold != nullptr && call.last_tie != nullptr);
  const bool rank = args.most >= 1 && args.floor >= 0 && args.numerator >= 1 && args.numerator <= args.denominator &&
                    args.denominator <= kFinestShare;
  const bool weight = args.weight < 0.0f ? rank : args.weight < 1.0f;
  const bool mass = args.weight < 0.0f && args.mass <= 1.0f;
  return is_sound(call) && dense && outputs && args.mass >= 0.0f && (args.mass > 0.0f ? mass : weight);
}

bool is_sound(const NMBackwardArgs& args) {
  const NMForwardArgs& call = args.forward;
  const bool saved = call.batch * call.q_len == 0 || call.logsumexp != nullptr;
  return is_sound(call) && call.kept_mass == nullptr && saved;
}

struct Peak {
  Isa isa;
  std::chrono::steady_clock::time_point end;
  std::atomic<int64_t> operations;
};

void run_peak(void* data) {
  Peak& peak = *static_cast<Peak*>(data);
  double operations = 0;
  while (std::chrono::steady_clock::now() < peak.end) operations += peak.isa.fma_chains(20000);
  peak.operations += static_cast<int64_t>(operations);
}

}  // namespace

extern "C" {

int32_t dynattn_args_bytes(void) { return static_cast<int32_t>(sizeof(NMBackwardArgs) + sizeof(RowForwardArgs)); }

int32_t dynattn_interface(void) { return DYNATTN_INTERFACE; }

const char* dynattn_isa_refusal(int32_t isa) { return refusal(isa); }

int32_t dynattn_best_isa(void) {
  if (runs(DYNATTN_ISA_AVX512)) return DYNATTN_ISA_AVX512;
  if (runs(DYNATTN_ISA_AVX2)) return DYNATTN_ISA_AVX2;
  return runs(DYNATTN_ISA_NEON) ? DYNATTN_ISA_NEON : DYNATTN_ISA_PORTABLE;
}

int32_t dynattn_tile_isa(void) {
  if (runs(DYNATTN_ISA_AMX)) return DYNATTN_ISA_AMX;
  return dynattn::avx512bf16_pays() && runs(DYNATTN_ISA_AVX512BF16) ? DYNATTN_ISA_AVX512BF16 : -1;
}

const char* dynattn_tile_disagreement(int32_t isa) {
  if (!is_tiled(isa) || !runs(isa)) return "it does not run here";
  return disagreement(isa);
}

int32_t dynattn_nm_forward(const NMForwardArgs* args) {
  if (args == nullptr || !is_sound(*args)) return DYNATTN_BAD_ARGUMENT;
  if (!runs(args->isa)) return DYNATTN_UNSUPPORTED_ISA;
  return kIsas[args->isa].nm_forward(*args);
}

int32_t dynattn_row_forward(const RowForwardArgs* args) {
  if (args == nullptr || !is_sound(*args)) return DYNATTN_BAD_ARGUMENT;
  if (!runs(args->call.isa) || kIsas[args->call.isa].row_forward == nullptr) return DYNATTN_UNSUPPORTED_ISA;
  return kIsas[args->call.isa].row_forward(*args);
}

int32_t dynattn_nm_backward(const NMBackwardArgs* args) {
  if (args == nullptr || !is_sound(*args)) return DYNATTN_BAD_ARGUMENT;
  if (!runs(args->forward.isa) || kIsas[args->forward.isa].nm_backward == nullptr) return DYNATTN_UNSUPPORTED_ISA;
  return kIsas[args->forward.isa].nm_backward(*args);
}

double dynattn_fma_peak(int32_t isa, int32_t threads, double seconds, dynattn_parallel_fn parallel) {
  if (!runs(isa) || kIsas[isa].fma_chains == nullptr || threads < 1 || !(seconds > 0)) return 0.0;
  kIsas[isa].fma_chains(200000);  // clocks up
  const auto start = std::chrono::steady_clock::now();
  const auto length =
      std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds));
  Peak peak = {kIsas[isa], start + length, {0}};
  dynattn::run_team(parallel, dynattn::most_threads(threads), run_peak, &peak);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  return static_cast<double>(peak.operations.load()) / took.count();
}

}  // extern "C"
