// The tile kernels of one engine as a library of their own, for tests that compile them otherwise than the package.
#include "common/team.cpp"
#include "tiles/tiles.cpp"

using namespace dynattn::DYNATTN_NAMESPACE;

extern "C" {

int32_t dynattn_nm_forward(const NMForwardArgs* args) { return nm_forward(*args); }

// sums[32][32] += A[32][32 · steps] · B, which is [step][32 columns] of 16 rows of pairs, by the engine alone.
void engine_product(const void* a, const void* b, int64_t steps, float* sums) {
  Engine engine;
  const Operand left = {static_cast<const char*>(a), 16 * 64 * steps, 64, 64 * steps};
  const Operand right = {static_cast<const char*>(b), kTileBytes, 2 * kTileBytes, 64};
  multiply_panel<true>(engine, left, 2, right, 2, steps, sums, 32);
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
