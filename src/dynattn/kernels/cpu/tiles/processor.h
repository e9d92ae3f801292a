// Whether this processor and its operating system run a tile engine.
#pragma once

namespace dynattn {

// Why AMX cannot run here, or NULL where it can. The first call asks the operating system for its permission to use
// tiles, once for the process.
const char* amx_refusal();

// The same of VDPBF16PS.
const char* avx512bf16_refusal();

// Whether VDPBF16PS is faster than multiply-adds in float32 here. It has twice their rate on AMD's processors from
// Zen 4 on; on the Xeon that was measured it has half of it.
bool avx512bf16_pays();

}  // namespace dynattn
