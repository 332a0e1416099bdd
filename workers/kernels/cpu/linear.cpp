// x W^T for bf16 weights on CPUs without bf16 instructions: weights stay bf16 in memory, which is
// what a decode step waits for, and are widened in registers; sums are float32.
#include "ops.h"
#include "tile.h"

namespace {

constexpr long kBlockBytes = 256 << 10;  // of x that stays in the second-level cache

// Threads take panels piece by piece, so that one which others have delayed does not hold up all.
constexpr long kPieces = 64;

// [outputs, inputs] -> panels of kPair outputs, each [inputs][kPair]; the last one is padded.
void pack_panel(const bf16* weight, long outputs, long inputs, long panel, bf16* to) {
  for (long k = 0; k < inputs; k++)
    for (int j = 0; j < kPair; j++) {
      long row = panel * kPair + j;
      to[k * kPair + j] = row < outputs ? weight[row * inputs + k] : bf16{0};
    }
}

void widen(const bf16* x, long count, float* to) {
  long k = 0;
  for (; k + kLanes <= count; k += kLanes) store(to + k, load(x + k));
  for (; k < count; k++) to[k] = to_float(x[k]);
}

void write(bf16* to, Pair sums, const bf16* bias, long width) {
  if (bias) {
    Pair more = load_pair(bias);
    sums = {sums.low + more.low, sums.high + more.high};
  }
  if (width >= kPair) return store(to, sums);
  bf16 row[kPair];
  store(row, sums);
  std::memcpy(to, row, width * sizeof(bf16));
}

}  // namespace

long panels_of(long outputs) { return (outputs + kPair - 1) / kPair; }

void pack_weight(const bf16* weight, long outputs, long inputs, bf16* packed) {
  parallel(panels_of(outputs), 1, [&](long begin, long end) {
    for (long p = begin; p < end; p++)
      pack_panel(weight, outputs, inputs, p, packed + p * inputs * kPair);
  });
}

void linear(const bf16* x, long x_stride, long rows, long inputs, const bf16* packed,
            const bf16* bias, long outputs, bf16* out) {
  static thread_local Scratch widened;
  long groups = (rows + kRows - 1) / kRows;
  long stride = inputs + 16;  // rows a power of two apart would share one set of the cache
  float* wide = widened.take(rows * stride);
  parallel(rows, 1 + 65536 / inputs, [&](long begin, long end) {
    for (long i = begin; i < end; i++) widen(x + i * x_stride, inputs, wide + i * stride);
  });
  long block = std::max<long>(1, kBlockBytes / (kRows * inputs * sizeof(float)));  // groups
  long panels = panels_of(outputs), pieces = std::min(panels, kPieces);
  share(pieces, [&](long piece) {
    long begin = panels * piece / pieces, end = panels * (piece + 1) / pieces;
    for (long g0 = 0; g0 < groups; g0 += block)
      for (long p = begin; p < end; p++) {
        const bf16* panel = packed + p * inputs * kPair;
        long column = p * kPair, width = std::min<long>(kPair, outputs - column);
        for (long g = g0; g < std::min(groups, g0 + block); g++) {
          long first = g * kRows, count = std::min<long>(kRows, rows - first);
          with_rows(count, [&](auto n) {
            constexpr int MR = decltype(n)::value;
            Pair acc[MR] = {};
            tile<MR>(inputs, wide + first * stride, 1, stride, panel, kPair, acc);
            for (int i = 0; i < MR; i++)
              write(out + (first + i) * outputs + column, acc[i], bias ? bias + column : nullptr,
                    width);
          });
        }
      }
  });
}
