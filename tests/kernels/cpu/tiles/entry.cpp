// The tile kernels of one engine as a library of their own, for tests that compile them otherwise than the package.
#include "common/team.cpp"
#include "tiles/self_check.cpp"
#include "tiles/tiles.cpp"

using namespace dynattn::DYNATTN_NAMESPACE;

extern "C" {

int32_t dynattn_nm_forward(const NMForwardArgs* args) { return nm_forward(*args); }

int32_t dynattn_row_forward(const RowForwardArgs* args) { return row_forward(*args); }

int32_t dynattn_skip_forward(const SkipForwardArgs* args) { return skip_forward(*args); }

int32_t dynattn_nm_backward(const NMBackwardArgs* args) { return nm_backward(*args); }

// What this engine computes otherwise than that of another library, whose functions have the addresses given.
const char* disagreement(decltype(&dynattn::DYNATTN_NAMESPACE::nm_forward) forward,
                         decltype(&dynattn::DYNATTN_NAMESPACE::nm_backward) backward,
                         decltype(&dynattn::DYNATTN_NAMESPACE::multiply) multiply_there, int32_t same_bits) {
  const dynattn::TileKernels here = {nm_forward, nm_backward, dynattn::DYNATTN_NAMESPACE::multiply};
  return dynattn::tile_disagreement(here, {forward, backward, multiply_there}, same_bits != 0);
}

// By the engine alone.
void engine_product(const void* a, const void* b, int64_t steps, float* sums) {
  dynattn::DYNATTN_NAMESPACE::multiply(a, b, steps, sums);
}

#if defined(DYNATTN_TILES_EMULATED)
uint64_t shim_products() { return amx_shim::products; }

// A configuration of another library's, before and after a call: 1 where the two are the same.
int32_t keeps_configuration(const NMForwardArgs* args) {
  amx_shim::Configuration before = {}, after;
  before.palette = 1, before.rows[0] = 3, before.row_bytes[0] = 12;
  amx_shim::load_configuration(&before);
  nm_forward(*args);
  amx_shim::store_configuration(&after);
  _tile_release();
  return memcmp(&before, &after, sizeof before) == 0;
}
#endif

}  // extern "C"
