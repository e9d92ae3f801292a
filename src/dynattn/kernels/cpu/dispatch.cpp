// The C interface: checks, then the build of the kernels that the caller asked for.
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <vector>

#include "common/builds.h"
#include "common/team.h"
#include "common/texts.h"
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
  int32_t (*nm_texts)(const dynattn::Text* texts, int64_t count);
  int32_t (*row_forward)(const RowForwardArgs& args);
  int32_t (*skip_forward)(const SkipForwardArgs& args);
  int32_t (*skip_one_query)(const SkipForwardArgs& args);
  int32_t (*choose_blocks)(const BlockForwardArgs& args);
  int32_t (*nm_backward)(const NMBackwardArgs& args);
  int32_t (*linear_choice)(const LinearArgs& args);
  int32_t (*linear_rows)(const LinearArgs& args);
  int32_t (*linear_outputs)(const LinearArgs& args);
  int32_t (*linear_nm_weight)(const LinearArgs& args);
  double (*fma_chains)(int64_t rounds);
};

constexpr char kNotBuilt[] = "this library was built for other processors";

#define DYNATTN_ISA(name)                                                                                             \
  {dynattn::name::nm_forward,    dynattn::name::nm_texts,       dynattn::name::row_forward,                           \
   dynattn::name::skip_forward,  dynattn::name::skip_one_query, dynattn::name::choose_blocks,                         \
   dynattn::name::nm_backward,   dynattn::name::linear_choice,  dynattn::name::linear_rows,                           \
   dynattn::name::linear_outputs, dynattn::name::linear_nm_weight, dynattn::name::fma_chains}
#define DYNATTN_TILES(name) \
  {dynattn::name::nm_forward, nullptr, dynattn::name::row_forward, dynattn::name::skip_forward, nullptr, nullptr,     \
   dynattn::name::nm_backward, nullptr, nullptr, nullptr, nullptr, nullptr}

// In the order of DYNATTN_ISA_*.
#ifdef DYNATTN_X86_KERNELS
constexpr Isa kAvx512Pairs = {
    dynattn::avx512_pairs::nm_forward, dynattn::avx512_pairs::nm_texts, dynattn::avx512_pairs::row_forward, nullptr,
    dynattn::avx512_pairs::skip_one_query, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
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
    case DYNATTN_ISA_AVX512BF16: {
      // asked once: in a virtual machine CPUID leaves the guest, which takes longer than a short call
      static const char* const found = dynattn::avx512bf16_refusal();
      return found;
    }
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

// The build that computes a call of N:M attention, of rows that choose by their own scores, or of one query that skips.
// One has products of pairs of bfloat16 numbers, which few queries take. A gradient makes the choice again by the
// forward's own code, and there the forward is of the build asked for.
const Isa& build_of(const NMForwardArgs& args) {
#ifdef DYNATTN_X86_KERNELS
  static const bool pairs = dynattn::avx512bf16_pays();
  if (args.isa == DYNATTN_ISA_AVX512 && args.dtype == DYNATTN_BFLOAT16 && !args.needs_grad && pairs) return kAvx512Pairs;
#endif
  return kIsas[args.isa];
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
  const bool pattern = args.m >= 1 && args.m <= kMaxM && args.n >= 1 && args.n <= args.m &&
                       args.window >= 0 && args.sinks >= 0 && args.within >= 0 && args.within_sinks >= 0 && args.stride >= 1 && args.stride <= kMaxStride &&
                       args.m * args.stride <= kMaxGroupSpan;
  const bool dtypes = is_storage(args.dtype) &&
                      (args.mask == nullptr || is_storage(args.mask_dtype) || args.mask_dtype == DYNATTN_BOOL);
  const bool counts =
      (args.kept_mass == nullptr) == (args.kept == nullptr) && (args.kept == nullptr) == (args.allowed == nullptr);
  const bool blocks = args.blocks == nullptr || (args.block_size >= 1 && args.block_size <= kMaxBlockSize &&
                                                 args.block_queries >= 1 && args.block_queries <= kMaxBlockSize);
  const bool scale = args.scale != 0.0f && args.scale - args.scale == 0.0f;
  const bool dropout =
      (args.drop_below == 0 || args.keep_factor >= 1.0f) && args.first_batch >= 0 && args.first_head >= 0;
  return sizes && pattern && dtypes && counts && blocks && scale && dropout && args.threads >= 1;
}

bool is_sound(const RowForwardArgs& args) {
  const NMForwardArgs& call = args.call;
  const bool dense = call.n == 1 && call.m == 1 && call.blocks == nullptr;
  const bool outputs = (call.threshold == nullptr) == (call.last_tie == nullptr);
  const bool rank = args.most >= 1 && args.floor >= 0 && args.numerator >= 1 && args.numerator <= args.denominator &&
                    args.denominator <= kFinestShare;
  const bool weight = args.weight < 0.0f ? rank : args.weight < 1.0f;
  const bool mass = args.weight < 0.0f && args.mass <= 1.0f;
  return is_sound(call) && dense && outputs && args.mass >= 0.0f && (args.mass > 0.0f ? mass : weight);
}

bool is_sound(const SkipForwardArgs& args) {
  const NMForwardArgs& call = args.call;
  const bool dense = call.n == 1 && call.m == 1 && call.kept_mass == nullptr && call.threshold == nullptr &&
                     call.window == 0 && call.sinks == 0 && call.within == 0;
  const bool blocks = call.blocks == nullptr || (call.block_queries % DYNATTN_SKIP_QUERIES == 0 &&
                                                 call.block_size % DYNATTN_SKIP_KEYS == 0);
  return is_sound(call) && dense && blocks && args.margin >= 0.0f && args.margin - args.margin == 0.0f;
}

bool is_sound(const BlockForwardArgs& args) {
  const NMForwardArgs& call = args.call;
  const bool blocks = call.blocks == nullptr && call.block_size >= 1 && call.block_size <= kMaxBlockSize &&
                      call.block_queries == call.block_size;
  const bool rank = args.floor >= 0 && args.numerator >= 1 && args.numerator <= args.denominator &&
                    args.denominator <= kFinestShare;
  const bool rule = args.mass > 0.0f ? args.mass <= 1.0f : args.mass == 0.0f && rank;
  return is_sound(call) && blocks && rule && args.alike >= 0.0f && args.window >= 0 && args.sinks >= 0;
}

bool is_sound(const NMBackwardArgs& args) {
  const NMForwardArgs& call = args.forward;
  const bool saved = call.batch * call.q_len == 0 || call.logsumexp != nullptr;
  return is_sound(call) && call.kept_mass == nullptr && saved;
}

bool is_sound(const NMTextsArgs& args) {
  const NMForwardArgs& call = args.call;
  bool sound = is_sound(call) && call.batch == 1 && call.mask == nullptr && call.blocks == nullptr &&
               call.threshold == nullptr && call.drop_below == 0 && args.texts >= 0;
  const bool paged = args.block_table != nullptr;
  if (paged) sound &= args.table_width >= 0 && args.page_size >= 1 && args.page_size % dynattn::kRunKeys == 0;
  if (args.texts > 0) sound &= args.query_start != nullptr && args.key_count != nullptr;
  if (args.texts > 0 && !paged) sound &= args.key_start != nullptr;
  for (int64_t t = 0; sound && t < args.texts; t++) {
    const int64_t start = args.query_start[t], end = args.query_start[t + 1], keys = args.key_count[t];
    sound = 0 <= start && start <= end && end <= call.q_len && keys >= 0;
    if (paged) {
      sound &= keys <= args.table_width * args.page_size;
    } else {
      sound &= args.key_start[t] >= 0 && args.key_start[t] <= call.kv_len - keys;
    }
  }
  return sound;
}

// Numbers of inputs and outputs are kept as 32 bits.
bool is_sound(const LinearArgs& args) {
  const bool sizes = args.tokens >= 0 && args.inputs >= 0 && args.inputs <= INT32_MAX && args.outputs >= 0 &&
                     args.outputs <= INT32_MAX;
  const bool dtypes = (args.dtype == DYNATTN_FLOAT32 || args.dtype == DYNATTN_BFLOAT16) &&
                      (args.weight_dtype == DYNATTN_INT8 ? args.scale != nullptr
                                                         : args.weight_dtype == args.dtype && args.scale == nullptr);
  return sizes && dtypes && args.threads >= 1;
}

bool is_few(const LinearArgs& args) { return args.tokens <= DYNATTN_LINEAR_TOKENS; }

bool is_nm(const LinearArgs& args) {
  return (args.m == 2 || args.m == 4) && args.n >= 1 && args.n < args.m && args.places != nullptr &&
         args.weight_dtype != DYNATTN_INT8;
}

// Whether inputs are kept by exactly one of a mask, thresholds and N:M.
bool keeps_inputs(const LinearArgs& args) {
  const bool groups = (args.m == 2 || args.m == 4 || args.m == 8 || args.m == 16) && args.n >= 1 && args.n < args.m;
  const bool none = args.n == 0 && args.m == 0;
  const bool above = args.thresholds != nullptr && (args.threshold_stride == 0 || args.threshold_stride == 1);
  return args.keep != nullptr ? args.thresholds == nullptr && none : above ? none : args.thresholds == nullptr && groups;
}

int32_t run_linear(const LinearArgs* args, bool sound, int32_t (*Isa::*function)(const LinearArgs& args)) {
  if (args == nullptr || !sound || !is_sound(*args)) return DYNATTN_BAD_ARGUMENT;
  if (!runs(args->isa) || kIsas[args->isa].*function == nullptr) return DYNATTN_UNSUPPORTED_ISA;
  return args->tokens * args->outputs == 0 ? DYNATTN_OK : (kIsas[args->isa].*function)(*args);
}

// Whether every page that holds a key of a text is one of those that there are.
bool pages_exist(const NMTextsArgs& args, int64_t text) {
  const int32_t* const row = args.block_table + text * args.table_width;
  for (int64_t first = 0; first < args.key_count[text]; first += args.page_size) {
    const int32_t page = row[first / args.page_size];
    if (page < 0 || page >= args.pages) return false;
  }
  return true;
}

template <class T>
void advance(T*& pointer, int64_t count) {
  if (pointer != nullptr) pointer += count;
}

const void* advanced(const void* pointer, int64_t elements, int32_t dtype) {
  return static_cast<const char*>(pointer) + elements * (dtype == DYNATTN_FLOAT32 ? 4 : 2);
}

// One text as a call of its own.
dynattn::Text text_of(const NMTextsArgs& args, int64_t text) {
  dynattn::Text one = {args.call, {nullptr, 0}};
  NMForwardArgs& call = one.args;
  const int64_t start = args.query_start[text];
  call.q_len = args.query_start[text + 1] - start, call.kv_len = args.key_count[text];
  call.query = advanced(call.query, start * call.query_strides[2], call.dtype);
  call.out = const_cast<void*>(advanced(call.out, start * call.out_strides[2], call.dtype));
  advance(call.logsumexp, start * call.heads);
  advance(call.kept_mass, start * call.heads);
  advance(call.kept, start * call.heads);
  advance(call.allowed, start * call.heads);
  if (args.block_table != nullptr) {
    one.pages = {args.block_table + text * args.table_width, args.page_size};
  } else {
    call.key = advanced(call.key, args.key_start[text] * call.key_strides[2], call.dtype);
    call.value = advanced(call.value, args.key_start[text] * call.value_strides[2], call.dtype);
  }
  return one;
}

int64_t chosen_bytes(const BlockForwardArgs& args) {
  const NMForwardArgs& call = args.call;
  const int64_t rows = (call.q_len + call.block_size - 1) / call.block_size;
  return call.batch * call.heads * rows * ((call.kv_len + call.block_size - 1) / call.block_size);
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

int32_t dynattn_args_bytes(void) {
  return static_cast<int32_t>(sizeof(NMBackwardArgs) + sizeof(RowForwardArgs) + sizeof(SkipForwardArgs) +
                              sizeof(BlockForwardArgs) + sizeof(NMTextsArgs) + sizeof(LinearArgs));
}

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
  const int32_t status = build_of(*args).nm_forward(*args);
  // numbers that bfloat16 parts do not hold
  return status == DYNATTN_NOT_BY_PARTS ? kIsas[dynattn_best_isa()].nm_forward(*args) : status;
}

// Texts with the most to do come first, so that the last tasks, for which others may wait, are short.
int32_t dynattn_nm_texts(const NMTextsArgs* args) {
  if (args == nullptr || !is_sound(*args)) return DYNATTN_BAD_ARGUMENT;
  if (!runs(args->call.isa) || kIsas[args->call.isa].nm_texts == nullptr) return DYNATTN_UNSUPPORTED_ISA;
  try {
    std::vector<dynattn::Text> texts;
    texts.reserve(static_cast<size_t>(args->texts));
    for (int64_t t = 0; t < args->texts; t++) {
      if (args->block_table != nullptr && !pages_exist(*args, t)) return DYNATTN_BAD_PAGE;
      if (args->query_start[t] < args->query_start[t + 1]) texts.push_back(text_of(*args, t));
    }
    std::stable_sort(texts.begin(), texts.end(), [](const dynattn::Text& a, const dynattn::Text& b) {
      return dynattn::products_of(a.args) > dynattn::products_of(b.args);
    });
    if (texts.empty()) return DYNATTN_OK;
    return build_of(args->call).nm_texts(texts.data(), static_cast<int64_t>(texts.size()));
  } catch (const std::bad_alloc&) {
    return DYNATTN_OUT_OF_MEMORY;
  }
}

int32_t dynattn_row_forward(const RowForwardArgs* args) {
  if (args == nullptr || !is_sound(*args)) return DYNATTN_BAD_ARGUMENT;
  if (!runs(args->call.isa) || kIsas[args->call.isa].row_forward == nullptr) return DYNATTN_UNSUPPORTED_ISA;
  const int32_t status = build_of(args->call).row_forward(*args);
  // numbers that the tiles' variant does not hold
  return status == DYNATTN_NOT_BY_PARTS ? kIsas[dynattn_best_isa()].row_forward(*args) : status;
}

int32_t dynattn_skip_forward(const SkipForwardArgs* args) {
  if (args == nullptr || !is_sound(*args)) return DYNATTN_BAD_ARGUMENT;
  if (!runs(args->call.isa) || kIsas[args->call.isa].skip_forward == nullptr) return DYNATTN_UNSUPPORTED_ISA;
  const NMForwardArgs& call = args->call;
  const bool alone = call.q_len == 1 && call.needs_grad == 0 && call.drop_below == 0;
  const auto one_query = alone ? build_of(call).skip_one_query : nullptr;
  return one_query != nullptr ? one_query(*args) : kIsas[call.isa].skip_forward(*args);
}

// Engines of tiles leave the choice to the best instruction set: it takes a small part of the time.
int32_t dynattn_choose_blocks(const BlockForwardArgs* args) {
  if (args == nullptr || !is_sound(*args) || (args->chosen == nullptr && chosen_bytes(*args) > 0))
    return DYNATTN_BAD_ARGUMENT;
  const int32_t isa = is_tiled(args->call.isa) ? dynattn_best_isa() : args->call.isa;
  return runs(isa) ? kIsas[isa].choose_blocks(*args) : DYNATTN_UNSUPPORTED_ISA;
}

int32_t dynattn_block_forward(const BlockForwardArgs* args) {
  if (args == nullptr || !is_sound(*args)) return DYNATTN_BAD_ARGUMENT;
  constexpr size_t kFew = 4096;
  uint8_t few[kFew];
  const size_t bytes = static_cast<size_t>(chosen_bytes(*args));
  const bool allocates = args->chosen == nullptr && bytes > kFew;
  BlockForwardArgs own = *args;
  if (args->chosen == nullptr) own.chosen = allocates ? static_cast<uint8_t*>(malloc(bytes)) : few;
  if (own.chosen == nullptr) return DYNATTN_OUT_OF_MEMORY;
  int32_t status = dynattn_choose_blocks(&own);
  own.call.blocks = own.chosen;
  if (status == DYNATTN_OK) status = dynattn_nm_forward(&own.call);
  if (allocates) free(own.chosen);
  return status;
}

int32_t dynattn_nm_backward(const NMBackwardArgs* args) {
  if (args == nullptr || !is_sound(*args)) return DYNATTN_BAD_ARGUMENT;
  if (!runs(args->forward.isa) || kIsas[args->forward.isa].nm_backward == nullptr) return DYNATTN_UNSUPPORTED_ISA;
  return kIsas[args->forward.isa].nm_backward(*args);
}

int32_t dynattn_linear_choice(const LinearArgs* args) {
  return run_linear(args, args != nullptr && args->keep == nullptr && keeps_inputs(*args), &Isa::linear_choice);
}

int32_t dynattn_linear_rows(const LinearArgs* args) {
  const bool sound = args != nullptr && keeps_inputs(*args) && args->weight_stride >= args->outputs &&
                     (is_few(*args) || (args->dtype == DYNATTN_FLOAT32 && args->weight_dtype == DYNATTN_FLOAT32));
  return run_linear(args, sound, &Isa::linear_rows);
}

int32_t dynattn_linear_outputs(const LinearArgs* args) {
  const bool sound = args != nullptr && is_few(*args) && args->keep != nullptr && args->weight_stride >= args->inputs;
  return run_linear(args, sound, &Isa::linear_outputs);
}

int32_t dynattn_linear_nm_weight(const LinearArgs* args) {
  return run_linear(args, args != nullptr && is_few(*args) && args->keep == nullptr && is_nm(*args), &Isa::linear_nm_weight);
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
