// The one inner loop: a tile of MR rows by two vectors of columns, accumulated over k in registers.
#pragma once
#include "vec.h"

constexpr int kRows = 6;  // 6 x 2 accumulators, 2 of b and 1 of a fit AVX2's 16 registers

constexpr int kAhead = 1024;  // elements of b that are fetched ahead: 2 KiB of bf16

// acc[i] += sum over k of a[k * a_k + i * a_i] * b[k * b_k ..]. With few rows several k go side by
// side: one chain of additions per accumulator would wait for itself.
template <int MR, class B>
inline void tile(long depth, const float* a, long a_k, long a_i, const B* b, long b_k,
                 Pair (&acc)[MR]) {
  constexpr int side = MR == 1 ? 4 : MR <= 3 ? 2 : 1;
  Pair sums[side][MR] = {};
  long k = 0;
  for (; k + side <= depth; k += side) {
#pragma GCC unroll 4
    for (int s = 0; s < side; s++) {
      __builtin_prefetch(b + (k + s) * b_k + kAhead);
      Pair columns = load_pair(b + (k + s) * b_k);
#pragma GCC unroll 6
      for (int i = 0; i < MR; i++) {
        vf row = splat(a[(k + s) * a_k + i * a_i]);
        sums[s][i].low += row * columns.low;
        sums[s][i].high += row * columns.high;
      }
    }
  }
  for (; k < depth; k++) {
    Pair columns = load_pair(b + k * b_k);
    for (int i = 0; i < MR; i++) {
      vf row = splat(a[k * a_k + i * a_i]);
      sums[0][i].low += row * columns.low;
      sums[0][i].high += row * columns.high;
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < MR; i++) {
#pragma GCC unroll 4
    for (int s = 0; s < side; s++) {
      acc[i].low += sums[s][i].low;
      acc[i].high += sums[s][i].high;
    }
  }
}

// Calls f with the number of rows as a compile-time constant.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <class F>
inline void with_rows(long rows, const F& f) {
  switch (rows) {
    case 1: return f(Count<1>());
    case 2: return f(Count<2>());
    case 3: return f(Count<3>());
    case 4: return f(Count<4>());
    case 5: return f(Count<5>());
    default: return f(Count<6>());
  }
}
