// N:M attention as a library of its own, for tests that compile it with a bug.
#include "common/team.cpp"
#include "nm/nm.cpp"

extern "C" int32_t dynattn_nm_forward(const NMForwardArgs* args) {
  return dynattn::DYNATTN_NAMESPACE::nm_forward(*args);
}
