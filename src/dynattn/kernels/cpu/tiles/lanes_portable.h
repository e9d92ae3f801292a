// Sixteen lanes as plain loops, for processors without AVX-512 and for the sanitizers.
#pragma once

namespace dynattn::DYNATTN_NAMESPACE {

struct Lanes {
  float x[kLanes];
};

struct Words {
  uint32_t x[kLanes];
};

template <class To, class Make>
DYNATTN_INLINE To each_lane(Make make) {
  To to;
  for (int i = 0; i < kLanes; i++) to.x[i] = make(i);
  return to;
}

template <class Test>
DYNATTN_INLINE LaneMask lanes_where(Test test) {
  unsigned mask = 0;
  for (int i = 0; i < kLanes; i++) mask |= static_cast<unsigned>(test(i)) << i;
  return static_cast<LaneMask>(mask);
}

DYNATTN_INLINE Lanes load_lanes(const float* p) {
  Lanes a;
  memcpy(&a, p, sizeof a);
  return a;
}

DYNATTN_INLINE void store(float* p, Lanes a) { memcpy(p, &a, sizeof a); }

DYNATTN_INLINE Words load_words(const void* p) {
  Words a;
  memcpy(&a, p, sizeof a);
  return a;
}

DYNATTN_INLINE void store(uint32_t* p, Words a) { memcpy(p, &a, sizeof a); }

// The first `count` of 32 numbers of 16 bits, zeros behind them.
DYNATTN_INLINE Words load_numbers(const uint16_t* p, int64_t count) {
  Words a = {};
  memcpy(&a, p, static_cast<size_t>(count) * sizeof *p);
  return a;
}

// The first `count` lanes.
DYNATTN_INLINE void store_first(float* p, Lanes a, int64_t count) {
  memcpy(p, &a, static_cast<size_t>(count) * sizeof *p);
}

// The low halves of the first `count` lanes, side by side.
DYNATTN_INLINE void store_halves(uint16_t* p, Words a, int64_t count = kLanes) {
  for (int64_t i = 0; i < count; i++) p[i] = static_cast<uint16_t>(a.x[i]);
}

DYNATTN_INLINE Lanes broadcast_lanes(float x) {
  return each_lane<Lanes>([=](int) { return x; });
}

DYNATTN_INLINE Words broadcast_words(uint32_t x) {
  return each_lane<Words>([=](int) { return x; });
}

DYNATTN_INLINE Lanes add(Lanes a, Lanes b) {
  return each_lane<Lanes>([&](int i) { return a.x[i] + b.x[i]; });
}

DYNATTN_INLINE Lanes sub(Lanes a, Lanes b) {
  return each_lane<Lanes>([&](int i) { return a.x[i] - b.x[i]; });
}

DYNATTN_INLINE Lanes mul(Lanes a, Lanes b) {
  return each_lane<Lanes>([&](int i) { return a.x[i] * b.x[i]; });
}

DYNATTN_INLINE Lanes fmadd(Lanes a, Lanes b, Lanes c) {
  return each_lane<Lanes>([&](int i) { return a.x[i] * b.x[i] + c.x[i]; });
}

DYNATTN_INLINE Lanes fmsub(Lanes a, Lanes b, Lanes c) {
  return each_lane<Lanes>([&](int i) { return a.x[i] * b.x[i] - c.x[i]; });
}

// The second where one of the two is NaN.
DYNATTN_INLINE Lanes max(Lanes a, Lanes b) {
  return each_lane<Lanes>([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
}

DYNATTN_INLINE Lanes min(Lanes a, Lanes b) {
  return each_lane<Lanes>([&](int i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
}

DYNATTN_INLINE LaneMask greater(Lanes a, Lanes b) {
  return lanes_where([&](int i) { return a.x[i] > b.x[i]; });
}

DYNATTN_INLINE LaneMask is_nan(Lanes a) {
  return lanes_where([&](int i) { return a.x[i] != a.x[i]; });
}

DYNATTN_INLINE Lanes select(LaneMask m, Lanes yes, Lanes no) {
  return each_lane<Lanes>([&](int i) { return m >> i & 1 ? yes.x[i] : no.x[i]; });
}

DYNATTN_INLINE Words select(LaneMask m, Words yes, Words no) {
  return each_lane<Words>([&](int i) { return m >> i & 1 ? yes.x[i] : no.x[i]; });
}

DYNATTN_INLINE Words only(LaneMask m, Words a) { return select(m, a, broadcast_words(0)); }

DYNATTN_INLINE Words both(Words a, Words b) {
  return each_lane<Words>([&](int i) { return a.x[i] & b.x[i]; });
}

DYNATTN_INLINE Words either(Words a, Words b) {
  return each_lane<Words>([&](int i) { return a.x[i] | b.x[i]; });
}

DYNATTN_INLINE Words flip(Words a, Words b) {
  return each_lane<Words>([&](int i) { return a.x[i] ^ b.x[i]; });
}

DYNATTN_INLINE Words add(Words a, Words b) {
  return each_lane<Words>([&](int i) { return a.x[i] + b.x[i]; });
}

template <int kBits>
DYNATTN_INLINE Words shift_left(Words a) {
  return each_lane<Words>([&](int i) { return a.x[i] << kBits; });
}

template <int kBits>
DYNATTN_INLINE Words shift_right(Words a) {
  return each_lane<Words>([&](int i) { return a.x[i] >> kBits; });
}

// Further bits where the mask has one.
DYNATTN_INLINE Words with_bits(LaneMask m, Words a, uint32_t bits) {
  return select(m, either(a, broadcast_words(bits)), a);
}

// The low half goes to the high one where the bit is set.
DYNATTN_INLINE Words raise_halves(LaneMask m, Words a) { return select(m, shift_left<16>(a), a); }

DYNATTN_INLINE LaneMask nonzero(Words a) {
  return lanes_where([&](int i) { return a.x[i] != 0; });
}

// Halves of words as unsigned numbers of 16 bits.
DYNATTN_INLINE Words max_halves(Words a, Words b) {
  return each_lane<Words>([&](int i) {
    const uint32_t x = a.x[i], y = b.x[i], high = (x >> 16 > y >> 16 ? x : y) & 0xffff0000u;
    return high | ((x & 0xffffu) > (y & 0xffffu) ? x & 0xffffu : y & 0xffffu);
  });
}

DYNATTN_INLINE Words words_of(Lanes a) {
  Words to;
  memcpy(&to, &a, sizeof to);
  return to;
}

DYNATTN_INLINE Lanes floats_of(Words a) {
  Lanes to;
  memcpy(&to, &a, sizeof to);
  return to;
}

// a - floor(a), for a >= 0; infinity gives 0.
DYNATTN_INLINE Lanes above_floor(Lanes a) {
  return each_lane<Lanes>([&](int i) {
    return a.x[i] < 0x1p23f ? a.x[i] - static_cast<float>(static_cast<int32_t>(a.x[i])) : 0.0f;
  });
}

// Round to nearest, ties to even; 2^31 for what is too large.
DYNATTN_INLINE Words round_to_words(Lanes a) {
  return each_lane<Words>([&](int i) {
    return a.x[i] < 0x1p31f && a.x[i] >= -0x1p31f ? static_cast<uint32_t>(static_cast<int32_t>(nearbyintf(a.x[i])))
                                                  : 0x80000000u;
  });
}

DYNATTN_INLINE Lanes round_lanes(Lanes a) {
  return each_lane<Lanes>([&](int i) { return nearbyintf(a.x[i]); });
}

// Rows become columns.
DYNATTN_INLINE void transpose(Lanes rows[kLanes]) {
  Lanes columns[kLanes];
  for (int i = 0; i < kLanes; i++) {
    for (int j = 0; j < kLanes; j++) columns[j].x[i] = rows[i].x[j];
  }
  memcpy(rows, columns, sizeof columns);
}

}  // namespace dynattn::DYNATTN_NAMESPACE
