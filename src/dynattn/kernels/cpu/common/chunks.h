// Value rows are processed a chunk of at most kMaxChunk vectors at a time, so that their sums stay in registers. The
// number of vectors in a chunk is known only at run time, but the loops over them are unrolled at compile time. The
// function below calls the code for the right number.
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

}  // namespace dynattn::DYNATTN_NAMESPACE
