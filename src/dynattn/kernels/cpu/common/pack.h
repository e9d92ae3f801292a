// Packs keys, values and queries into the order in which the kernels read them, padded with zeros.
//
//     keys      [tile][panel][head_dim][panel vectors · kWidth], positions as in plan.h
//     values    [tile][chunk][tile keys][chunk vectors · kWidth]
//     queries   [band][head_dim][rows]
//
// Packing looks at every element once, so that the kernels know whether they may ignore NaN and overflow.
#pragma once

#include "common/dtypes.h"
#include "common/plan.h"
#include "common/row_places.h"

namespace dynattn::DYNATTN_NAMESPACE {

// The largest magnitude seen, and whether all was finite.
struct Range {
  Vec largest = zero();
  Vec nan = zero();  // x · 0 summed up: NaN when any x was not finite

  DYNATTN_INLINE void see(Range& range, Vec x) {
    range.largest = max(range.largest, abs(x));
    range.nan = fmadd(x, zero(), range.nan);
  }
  float bound() const {
    const float sum = reduce_add(nan);
    return sum == sum ? reduce_max(largest) : INFINITY;
  }
};

alignas(64) static const float kZeros[kMaxHeadDim + kWidth] = {};

// A row of `dim` floats: the caller's own where it is float32, else converted into `room`.
DYNATTN_INLINE const float* float_row(const char* row, int32_t dtype, int64_t dim, float* room) {
  if (dtype == DYNATTN_FLOAT32) return reinterpret_cast<const float*>(row);
  to_floats(room, row, dtype, dim);
  return room;
}

DYNATTN_INLINE Vec load_part(const float* p, int64_t count) {
  if (count >= kWidth) return load_any(p);
  alignas(64) float part[kWidth] = {};
  for (int64_t i = 0; i < count; i++) part[i] = p[i];
  return load(part);
}

// Prefetches a row that is read soon. Many rows are read at once, a few columns at a time, which no hardware prefetcher
// recognises as streams. Addresses behind the end do no harm.
DYNATTN_INLINE void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i);
}

// The same into the second-level cache alone, for a row that is read later. The first-level cache waits for two dozen
// lines at most, half of what keeps the memory busy, and more than that hold up the loads behind them.
DYNATTN_INLINE void prefetch_far(const char* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
}

// Turns kWidth rows into columns: to[k · stride + i] = factor · rows[i][k]. Writes kWidth floats for each k.
static void pack_columns(float* to, int64_t stride, const float* const rows[kWidth], int64_t dim, float factor,
                         Range& range) {
  const Vec scale = broadcast(factor);
  for (int64_t k = 0; k < dim; k += kWidth) {
    Vec block[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; i++) {
      block[i] = load_part(rows[i] + k, dim - k);
      Range::see(range, block[i]);
    }
    transpose(block);
#pragma GCC unroll 16
    for (int c = 0; c < kWidth; c++) {
      if (k + c < dim) store_any(to + (k + c) * stride, mul(block[c], scale));
    }
  }
}

// Columns of zeros, where no row of a vector is a key: a short call has more of these than of others.
DYNATTN_INLINE void clear_columns(float* to, int64_t stride, int64_t dim) {
  for (int64_t k = 0; k < dim; k++) store_any(to + k * stride, zero());
}

// Packs the keys of tiles [first, last) of one head; `to` is the place of the first.
static float pack_keys(const Plan& plan, const char* head, int64_t first, int64_t last, float* to) {
  const NMForwardArgs& args = *plan.args;
  alignas(64) float room[kWidth][kMaxHeadDim];
  const int64_t panel_keys = int64_t{plan.panel} * kWidth, ahead = int64_t{plan.m} * larger(plan.stride, kWidth);
  Range range;
  RowPlaces places;
  for (int64_t tile = first; tile < last; tile++) {
    find_rows(plan, head, args.key_strides, tile * plan.tile, places);
    for (int position = 0; position < plan.tile; position += kWidth) {
      const int64_t panel = position / panel_keys, within = position % panel_keys;
      float* column = to + ((tile - first) * plan.tile + panel * panel_keys) * args.head_dim + within;
      if (tile * plan.tile + plan.key_of[position] >= args.kv_len) {  // the first of the vector's keys
        clear_columns(column, panel_keys, args.head_dim);
        continue;
      }
      const float* rows[kWidth];
      for (int lane = 0; lane < kWidth; lane++) {
        const int64_t key = plan.key_of[position + lane];
        const char* row = places.row(key);
        prefetch_row(places.row(key + ahead), args.head_dim * element_size(args.dtype));
        rows[lane] = tile * plan.tile + key < args.kv_len ? float_row(row, args.dtype, args.head_dim, room[lane]) : kZeros;
      }
      pack_columns(column, panel_keys, rows, args.head_dim, plan.fold, range);
    }
  }
  return range.bound();
}

static void see_row(const float* row, int64_t dim, Range& range) {
  for (int64_t k = 0; k < dim; k += kWidth) Range::see(range, load_part(row + k, dim - k));
}

// Cuts a row of `dim` floats into the plan's chunks, `apart` floats from one to the next, and puts zeros behind it.
DYNATTN_INLINE void cut_row(const Plan& plan, const float* row, int64_t dim, float* to, int64_t apart) {
  const int64_t width = int64_t{plan.chunk} * kWidth;
  for (int64_t chunk = 0; chunk < plan.chunks; chunk++) {
    for (int64_t k = 0; k < width; k += kWidth) {
      const int64_t at = chunk * width + k;
      store(to + chunk * apart + k, at < dim ? load_part(row + at, dim - at) : zero());
    }
  }
}

// Packs one tile of values, with zeros behind the last key.
static void pack_value_tile(const Plan& plan, const char* head, int64_t tile, float* to, Range& range) {
  const NMForwardArgs& args = *plan.args;
  alignas(64) float room[kMaxHeadDim];
  const int64_t width = int64_t{plan.chunk} * kWidth;
  const int64_t keys = larger<int64_t>(0, smaller<int64_t>(plan.tile, args.kv_len - tile * plan.tile));
  RowPlaces places;
  find_rows(plan, head, args.value_strides, tile * plan.tile, places);
  for (int64_t i = 0; i < keys; i++) {
    const float* row = float_row(places.row(i), args.dtype, args.value_dim, room);
    see_row(row, args.value_dim, range);
    cut_row(plan, row, args.value_dim, to + i * width, plan.tile * width);
  }
  const size_t behind = static_cast<size_t>((plan.tile - keys) * width) * sizeof(float);
  for (int64_t chunk = 0; chunk < plan.chunks; chunk++) memset(to + (chunk * plan.tile + keys) * width, 0, behind);
}

// Packs the values of tiles [first, last) of one head. Where the caller's values can be read in place they are only
// looked at, and only a partial last tile is copied to `to`, for its padding.
static inline float pack_values(const Plan& plan, const char* head, int64_t first, int64_t last, float* to) {
  const NMForwardArgs& args = *plan.args;
  const int64_t tile_floats = plan.tile * value_width(plan);
  Range range;
  for (int64_t tile = first; tile < last; tile++) {
    if (!plan.value_in_place) {
      pack_value_tile(plan, head, tile, to + tile * tile_floats, range);
    } else if ((tile + 1) * plan.tile > args.kv_len) {
      pack_value_tile(plan, head, tile, to, range);
    } else {
      see_row(reinterpret_cast<const float*>(head) + tile * tile_floats, tile_floats, range);
    }
  }
  return range.bound();
}

static const char* kv_head(const NMForwardArgs& args, const void* base, const int64_t strides[3], int64_t head) {
  return element(base, head / args.kv_heads * strides[0] + head % args.kv_heads * strides[1], args.dtype);
}

// The queries of a query block. Bands are padded with zero rows; `to` needs room for kWidth floats more, which are
// overwritten or never read: rows beyond the band spill into the next column, so columns are written in order, high
// rows first.
static float pack_queries(const Plan& plan, const char* head, int64_t first, int64_t count, float* to) {
  const NMForwardArgs& args = *plan.args;
  alignas(64) float room[kWidth][kMaxHeadDim];
  Range range;
  for (int64_t band = 0; band < count; band += plan.rows) {
    for (int64_t high = (plan.rows - 1) / kWidth * kWidth; high >= 0; high -= kWidth) {
      const float* rows[kWidth];
      for (int lane = 0; lane < kWidth; lane++) {
        const int64_t row = band + high + lane;
        const bool inside = high + lane < plan.rows && row < count;
        const char* at = element(head, (first + row) * args.query_strides[2], args.dtype);
        const char* next = element(at, plan.rows * args.query_strides[2], args.dtype);
        if (inside) prefetch_row(next, args.head_dim * element_size(args.dtype));
        rows[lane] = inside ? float_row(at, args.dtype, args.head_dim, room[lane]) : kZeros;
      }
      pack_columns(to + band * args.head_dim + high, plan.rows, rows, args.head_dim, 1.0f, range);
    }
  }
  return range.bound();
}

}  // namespace dynattn::DYNATTN_NAMESPACE
