// So that sums stay in registers, value rows are processed a chunk of at most kMaxChunk vectors at a time, and few
// query rows at most kRowsAtOnce at a time. These numbers are known only at run time, but the loops over them are
// unrolled at compile time. The functions below call the code for the right number.
#pragma once

#include "common/plan.h"

namespace dynattn::DYNATTN_NAMESPACE {

template <int kNumber>
struct Constant {
  static constexpr int value = kNumber;
};

// Calls body(Constant<chunk>()), where `chunk` is between 1 and kMaxChunk.
template <class Body>
DYNATTN_INLINE void with_chunk(int chunk, Body body) {
  switch (chunk) {
    case 1:
      return body(Constant<1>());
    case 2:
      return body(Constant<2>());
    case 3:
      return body(Constant<3>());
    case 4:
      return body(Constant<4>());
    default:
      break;
  }
  if constexpr (kMaxChunk > 4) {
    switch (chunk) {
      case 5:
        return body(Constant<5>());
      case 6:
        return body(Constant<6>());
      case 7:
        return body(Constant<7>());
      case 8:
        return body(Constant<8>());
      default:
        break;
    }
  }
}

constexpr int64_t kRowsAtOnce = 4;  // query rows for which a key or a value is loaded once

// Calls body(Constant<rows>()), where `rows` is between 1 and kRowsAtOnce.
template <class Body>
DYNATTN_INLINE void with_rows(int64_t rows, Body body) {
  switch (rows) {
    case 1:
      return body(Constant<1>());
    case 2:
      return body(Constant<2>());
    case 3:
      return body(Constant<3>());
    default:
      return body(Constant<4>());
  }
}

}  // namespace dynattn::DYNATTN_NAMESPACE
