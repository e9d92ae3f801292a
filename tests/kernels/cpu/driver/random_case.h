// Random cases: every choice that a caller has, drawn from a number, so that a case that fails can be run again by it.
#pragma once

#include "problem.h"

namespace driver {

inline bool one_in(int n) { return random_int(1, n) == 1; }

// Mostly small, at times as large as `most`, and often where vectors and tiles end.
inline int random_length(int most) {
  const int ends[] = {1, 2, 7, 8, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512};
  const int at = ends[random_int(0, 18)];
  if (one_in(3) && at <= most) return at;
  return one_in(3) ? random_int(1, most) : random_int(1, most < 40 ? most : 40);
}

inline Pattern random_pattern() {
  const Pattern common[] = {{1, 1, 0, 0}, {1, 2, 0, 0}, {2, 4, 0, 0}, {1, 2, 0, 0, 16}, {2, 4, 0, 0, 16}};
  Pattern pattern = common[random_int(0, 4)];
  if (one_in(3)) {
    pattern.m = random_int(1, 32), pattern.n = random_int(1, pattern.m);
    const int most = 256 / pattern.m < 64 ? 256 / pattern.m : 64;
    pattern.stride = one_in(2) ? 1 : random_int(1, most);
  }
  if (one_in(3)) pattern.window = random_length(100);
  if (one_in(3)) pattern.sinks = random_length(100);
  return pattern;
}

inline Rule random_rule() {
  Rule rule;
  rule.most = one_in(2) ? random_length(64) : int64_t{1} << 40;
  rule.denominator = random_int(1, 10), rule.numerator = random_int(1, static_cast<int>(rule.denominator));
  if (one_in(4)) rule.weight = static_cast<float>(random_int(0, 100)) / 1001.0f;
  if (rule.weight < 0 && one_in(3)) rule.mass = static_cast<float>(random_int(1, 1000)) / 1000.7f;
  return rule;
}

// A case by its number. The naive loops take time by pairs and dimensions, so that long ones have few others.
inline Case random_case(int isa, int number) {
  state = static_cast<unsigned long long>(number) * 0x9E3779B97F4A7C15ull + 1;
  for (int i = 0; i < 8; i++) random_int(0, 1);
  Case c;
  c.isa = isa, c.seed = (uint64_t{static_cast<uint32_t>(random_int(0, 1 << 30))} << 33) + static_cast<uint64_t>(number);
  Shape& s = c.shape;
  s.batch = one_in(20) ? 0 : random_int(1, 2), s.kv_heads = random_int(1, 3), s.heads = s.kv_heads * random_int(1, 3);
  s.q_len = one_in(40) ? 0 : one_in(2) ? random_int(1, 8) : random_length(260);
  s.kv_len = one_in(40) ? 0 : random_length(600);
  s.head_dim = random_length(one_in(4) ? 512 : 100), s.value_dim = random_length(one_in(4) ? 512 : 100);
  while (int64_t{s.batch} * s.heads * s.q_len * s.kv_len * (s.head_dim + s.value_dim + 100) > 3000000) {
    int& largest = s.q_len > s.kv_len ? s.q_len : s.heads > s.kv_heads ? s.heads : s.kv_len;
    if (&largest == &s.heads) {
      s.heads = s.kv_heads;
    } else {
      largest = (largest + 1) / 2;
    }
  }
  c.mask = one_in(2) ? Mask::kNone : static_cast<Mask>(random_int(1, 4));
  c.order = static_cast<Order>(random_int(0, 3)), c.causal = one_in(2), c.aux = one_in(3);
  c.dtype = one_in(2) ? DYNATTN_FLOAT32 : random_int(DYNATTN_BFLOAT16, DYNATTN_FLOAT16);
  c.threads = random_int(1, 3), c.scale = (one_in(4) ? -1.0f : 1.0f) * (one_in(2) ? 0.25f : 0.0625f);
  c.dropout_p = one_in(2) ? 0.0 : static_cast<double>(random_int(1, 99)) / 100.0;
  if (one_in(8)) c.trouble = static_cast<Trouble>(random_int(1, 4));
  if (c.trouble == Trouble::kOverflow && c.dtype == DYNATTN_FLOAT16) c.trouble = Trouble::kNone;  // no 2^100 there
  if (one_in(4)) {
    c.pattern = {1, 1, 0, 0}, c.rule = random_rule();
  } else {
    c.pattern = random_pattern();
    if (one_in(3)) c.block_size = random_length(512);
  }
  if (c.rule.most > 0 && one_in(3)) c.pattern.window = random_length(100), c.pattern.sinks = random_length(100);
  if (!c.aux && c.trouble == Trouble::kNone && one_in(3)) {  // counts are of N:M before the cut
    c.pattern.within = random_length(100), c.pattern.within_sinks = one_in(2) ? random_length(100) : 0;
  }
  if (c.block_size > 0) c.pattern.beyond_blocks = one_in(2);
  if (c.rule.most > 0) c.rounded = one_in(2);
  return c;
}

}  // namespace driver
