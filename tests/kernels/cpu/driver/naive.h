// Attention of N:M and of rows that choose by their scores, and its gradients, as naive loops: what the kernels are
// held to.
#pragma once

#include <algorithm>

#include "problem.h"

namespace driver {

struct Row {
  std::vector<double> out;
  double logsumexp, kept_mass;
  int kept, allowed;
  double spread;                // largest magnitude of a weighted value: the unit of rounding
  std::vector<double> weights;  // of every key, 0 where it is not kept
  std::vector<double> factors;  // of dropout: 0, or the factor of what is left
  bool certain;                 // no choice hangs on how a weight is rounded
};

// Philox, as Random123 has it: `n` words of counter and n / 2 of key.
inline uint32_t philox(int n, uint32_t counter[4], uint32_t key[2]) {
  const uint32_t multipliers[2] = {n == 4 ? 0xD2511F53u : 0xD256D193u, 0xCD9E8D57u};
  for (int round = 0; round < 10; round++) {
    uint32_t low[2], high[2];
    for (int i = 0; i < n / 2; i++) {
      const uint64_t product = uint64_t{counter[2 * i]} * multipliers[i];
      low[i] = static_cast<uint32_t>(product), high[i] = static_cast<uint32_t>(product >> 32);
    }
    if (n == 2) {
      counter[0] = high[0] ^ key[0] ^ counter[1], counter[1] = low[0];
    } else {
      counter[0] = high[1] ^ counter[1] ^ key[0], counter[2] = high[0] ^ counter[3] ^ key[1];
      counter[1] = low[1], counter[3] = low[0];
    }
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
  return counter[0];
}

// What dropout multiplies the weight of a pair by.
inline double drop_factor(const Case& c, int b, int h, int i, int j) {
  if (c.dropout_p == 0.0) return 1.0;
  uint32_t head[4] = {static_cast<uint32_t>(h), static_cast<uint32_t>(b), 0, 0};
  uint32_t seed[2] = {static_cast<uint32_t>(c.seed), static_cast<uint32_t>(c.seed >> 32)};
  uint32_t stream[2] = {philox(4, head, seed), 0};
  uint32_t pair[4] = {static_cast<uint32_t>(j), static_cast<uint32_t>(i), 0, 0};
  return philox(2, pair, stream) < drop_below(c) ? 0.0 : 1.0 / (1.0 - c.dropout_p);
}

// What a rule keeps of a row of scores; nothing where there is none.
template <class Beats>
std::vector<bool> naive_choice(const Rule& rule, const std::vector<double>& score, Beats beats, bool& certain) {
  const int length = static_cast<int>(score.size());
  std::vector<bool> keep(score.size());
  if (rule.most == 0) return keep;
  double largest = -kInf, all = 0;
  int64_t allowed = 0;
  for (double x : score) {
    allowed += x != -kInf;
    if (x > largest) largest = x;
  }
  std::vector<double> weights(score.size());
  for (size_t j = 0; j < score.size(); j++) all += weights[j] = score[j] == -kInf ? 0 : std::exp(score[j] - largest);
  for (double& weight : weights) weight /= all;
  const int64_t share = (allowed * rule.numerator + rule.denominator - 1) / rule.denominator;
  const int64_t wanted = std::min(rule.most, std::max(rule.floor, share));
  for (int j = 0; j < length; j++) {
    int better = 0;
    double before = 0;
    for (int other = 0; other < length; other++) {
      if (other == j || !beats(other, j)) continue;
      better++;
      before += weights[static_cast<size_t>(other)];
    }
    const double weight = weights[static_cast<size_t>(j)];  // NaN is above nothing
    certain = certain && !(std::fabs(weight - double{rule.weight}) < 1e-5 * weight);
    if (rule.mass > 0) {
      certain = certain && !(std::fabs(before - double{rule.mass}) < 2e-6);
      keep[static_cast<size_t>(j)] = better == 0 || before < double{rule.mass};
    } else {
      keep[static_cast<size_t>(j)] = rule.weight < 0 ? better < wanted : better == 0 || weight > double{rule.weight};
    }
  }
  return keep;
}

// The definition, for one query: a score is a float32 sum, which is exact here unless it overflows or a bias is large.
inline Row naive_row(const Problem& p, int b, int h, int i) {
  const Shape& s = p.c.shape;
  const Pattern& pattern = p.c.pattern;
  const int group = h / (s.heads / s.kv_heads);
  std::vector<double> score(static_cast<size_t>(s.kv_len));
  std::vector<bool> keep(score.size());
  auto beats = [&](int a, int z) {  // NaN first, then the larger, then the earlier
    const double x = score[static_cast<size_t>(a)], y = score[static_cast<size_t>(z)];
    if (std::isnan(x) != std::isnan(y)) return std::isnan(x);
    return std::isnan(x) || x == y ? a < z : x > y;
  };
  const double* const query = p.query_row(b, h, i);
  for (int j = 0; j < s.kv_len; j++) {
    const double* const key = p.key_row(b, group, j);
    float sum = 0.0f;
    for (int d = 0; d < s.head_dim; d++) sum += static_cast<float>(query[d] * key[d]);
    const double bias = p.bias(b, h, i, j);
    score[static_cast<size_t>(j)] = bias == -kInf ? bias : static_cast<float>(double{sum} * p.c.scale + bias);
  }
  Row row = {std::vector<double>(static_cast<size_t>(s.value_dim)),
             -kInf,
             1.0,
             0,
             0,
             0.0,
             std::vector<double>(score.size()),
             std::vector<double>(score.size()),
             true};
  double largest = -kInf, kept = 0, all = 0;
  bool nan = false, infinite = false;
  const std::vector<bool> by_rule = naive_choice(p.c.rule, score, beats, row.certain);
  for (int j = 0; j < s.kv_len; j++) {
    int better = 0;
    const int block = pattern.m * pattern.stride, start = j / block * block;
    for (int other = start; other < start + block && other < s.kv_len; other++)
      better += other != j && other % pattern.stride == j % pattern.stride && beats(other, j);
    const double x = score[static_cast<size_t>(j)];
    const bool chosen = p.c.rule.most > 0 ? by_rule[static_cast<size_t>(j)] : better < pattern.n;
    keep[static_cast<size_t>(j)] = x != -kInf && (chosen || p.is_joined(i, j)) && !p.is_cut(i, j);
    row.allowed += x != -kInf;
    row.kept += keep[static_cast<size_t>(j)];
    nan = nan || std::isnan(x);
    infinite = infinite || x == kInf;
    if (x > largest) largest = x;
  }
  for (int j = 0; j < s.kv_len; j++) {
    const double x = score[static_cast<size_t>(j)];
    if (x == -kInf) continue;
    const double weight = std::exp(x - largest);
    all += weight;
    if (!keep[static_cast<size_t>(j)]) continue;
    kept += weight;
    row.weights[static_cast<size_t>(j)] = weight;
    const double factor = row.factors[static_cast<size_t>(j)] = drop_factor(p.c, b, h, i, j);
    const double* const value = p.value_row(b, group, j);
    for (int d = 0; d < s.value_dim && factor > 0; d++) {
      const double v = factor * value[d];
      row.out[static_cast<size_t>(d)] += weight * v;
      if (std::isfinite(v)) row.spread = std::fmax(row.spread, std::fabs(v));
    }
  }
  for (double& weight : row.weights) weight /= row.kept ? kept : 1.0;
  if (row.kept) row.logsumexp = largest + std::log(kept), row.kept_mass = kept / all;
  for (double& x : row.out) x = nan || infinite ? NAN : row.kept ? x / kept : 0.0;
  if (nan || infinite) row.kept_mass = NAN;
  if (nan || infinite) row.logsumexp = nan ? NAN : kInf;
  return row;
}

// A gradient, summed up term by term, and the sum of the terms' magnitudes, which rounding grows with.
struct Sums {
  std::vector<double> sum, size;

  explicit Sums(size_t count) : sum(count), size(count) {}
  void add(int64_t at, double term) {
    sum[static_cast<size_t>(at)] += term;
    size[static_cast<size_t>(at)] += std::fabs(term);
  }
};

// Gradients, laid out densely as (batch, heads, length, dim).
struct Gradients {
  Sums query, key, value;
  std::vector<double> scores;
};

inline Gradients naive_gradients(const Problem& p, const std::vector<Row>& rows, const Tensor& grad_out,
                                 const std::vector<float>& grad_logsumexp) {
  const Shape& s = p.c.shape;
  const int64_t queries = int64_t{s.batch} * s.heads * s.q_len, keys = int64_t{s.batch} * s.kv_heads * s.kv_len;
  Gradients g = {Sums(static_cast<size_t>(queries * s.head_dim)), Sums(static_cast<size_t>(keys * s.head_dim)),
                 Sums(static_cast<size_t>(keys * s.value_dim)),
                 std::vector<double>(static_cast<size_t>(queries * s.kv_len))};
  const std::vector<double> grads = grad_out.numbers();
  int64_t at = 0;
  for (int b = 0; b < s.batch; b++) {
    for (int h = 0; h < s.heads; h++) {
      const int group = h / (s.heads / s.kv_heads);
      for (int i = 0; i < s.q_len; i++, at++) {
        const Row& row = rows[static_cast<size_t>(at)];
        const double *const query = p.query_row(b, h, i), *const grad = grads.data() + grad_out.at(b, h, i);
        std::vector<double> d_weight(row.weights.size());
        double mean = 0;
        for (int j = 0; j < s.kv_len; j++) {
          const double weight = row.weights[static_cast<size_t>(j)];
          if (weight == 0) continue;
          const double factor = row.factors[static_cast<size_t>(j)];
          const int64_t key = (int64_t{b} * s.kv_heads + group) * s.kv_len + j;
          const double* const value = p.value_row(b, group, j);
          for (int d = 0; d < s.value_dim; d++) {
            d_weight[static_cast<size_t>(j)] += factor * grad[d] * value[d];
            g.value.add(key * s.value_dim + d, factor * weight * grad[d]);
          }
          mean += weight * d_weight[static_cast<size_t>(j)];
        }
        for (int j = 0; j < s.kv_len; j++) {
          const double weight = row.weights[static_cast<size_t>(j)];
          if (weight == 0) continue;
          const int64_t key = (int64_t{b} * s.kv_heads + group) * s.kv_len + j;
          const double* const key_row = p.key_row(b, group, j);
          const double d_score =
              weight * (d_weight[static_cast<size_t>(j)] - mean + double{grad_logsumexp[static_cast<size_t>(at)]});
          g.scores[static_cast<size_t>(at * s.kv_len + j)] = d_score;
          for (int d = 0; d < s.head_dim; d++) {
            g.query.add(at * s.head_dim + d, p.c.scale * d_score * key_row[d]);
            g.key.add(key * s.head_dim + d, p.c.scale * d_score * query[d]);
          }
        }
      }
    }
  }
  return g;
}

}  // namespace driver
