// Rows that choose by their own scores as a library of their own, for tests that compile it with a bug.
#include "common/team.cpp"
#include "rows/rows.cpp"

extern "C" int32_t dynattn_row_forward(const RowForwardArgs* args) {
  return dynattn::DYNATTN_NAMESPACE::row_forward(*args);
}
