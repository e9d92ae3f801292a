// Few queries whose rows choose by their own scores, and one that skips, as a library of its own, for tests that compile
// it with a bug.
#include "common/team.cpp"
#include "rows/rows.cpp"

extern "C" int32_t dynattn_row_forward(const RowForwardArgs* args) {
  return dynattn::DYNATTN_NAMESPACE::row_forward(*args);
}

extern "C" int32_t dynattn_skip_forward(const SkipForwardArgs* args) {
  return dynattn::DYNATTN_NAMESPACE::skip_one_query(*args);
}
