// A text among others that one call computes, and where its keys and values lie.
#pragma once

#include "dynattn_cpu.h"

namespace dynattn {

// Key j of a text is row j % size of page table[j / size]. The size is a multiple of kRunKeys.
struct Pages {
  const int32_t* table;  // NULL: rows lie one behind another
  int64_t size;
};

constexpr int kRunKeys = 16;  // so many keys, from a multiple of it, lie evenly spaced in memory, in pages too

// With pages, args has a batch of 1, and the batch strides of its keys and values are those from page to page.
struct Text {
  NMForwardArgs args;
  Pages pages;
};

}  // namespace dynattn
