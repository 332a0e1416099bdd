// The first place of the largest in each row, as fast as rows can be read.
#include "ops.h"

namespace {

constexpr long kPiece = 8192;  // one of a row is read again, to find the place

struct Largest {
  float value;  // of those that are numbers
  bool nan;     // whether any is not
};

// Where either is NaN.
vi unordered(vf a, vf b) {
#if defined(__AVX512F__)
  return (vi)_mm512_movm_epi32(_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q));
#else
  return (vi)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q);
#endif
}

bool any(vi mask) {
  int32_t lanes[kLanes], some = 0;
  *reinterpret_cast<vi*>(lanes) = mask;
  for (int32_t lane : lanes) some |= lane;
  return some;
}

template <class T>
Largest largest_of(const T* x, long size) {
  vf a = splat(-INFINITY), b = a, c = a, d = a;  // four, as a maximum waits for the one before
  vi nan = {};
  long j = 0;
  for (; j + 2 * kPair <= size; j += 2 * kPair) {
    Pair one = load_pair(x + j), two = load_pair(x + j + kPair);
    a = max(a, one.low), b = max(b, one.high), c = max(c, two.low), d = max(d, two.high);
    nan |= unordered(one.low, one.high) | unordered(two.low, two.high);
  }
  Largest found{max(max(max(a, b), max(c, d))), any(nan)};
  for (; j < size; j++) {
    float value = to_float(x[j]);
    found.value = value > found.value ? value : found.value;
    found.nan |= value != value;
  }
  return found;
}

template <class T>
long argmax_row(const T* x, long width) {
  float most = -INFINITY;
  long at = 0;  // of the piece where `most` stands first
  for (long begin = 0; begin < width; begin += kPiece) {
    Largest piece = largest_of(x + begin, std::min(kPiece, width - begin));
    if (piece.nan) {
      while (to_float(x[begin]) == to_float(x[begin])) begin++;
      return begin;
    }
    if (piece.value > most) most = piece.value, at = begin;
  }
  while (at + kLanes <= width && !any(load(x + at) == most)) at += kLanes;
  while (to_float(x[at]) != most) at++;
  return at;
}

}  // namespace

template <class T>
void argmax(const T* x, long stride, long rows, long width, T* values, int64_t* indices) {
  parallel(rows, 1 + 32768 / width, [&](long begin, long end) {
    for (long i = begin; i < end; i++) {
      indices[i] = argmax_row(x + i * stride, width);
      values[i] = x[i * stride + indices[i]];
    }
  });
}

template void argmax(const float*, long, long, long, float*, int64_t*);
template void argmax(const bf16*, long, long, long, bf16*, int64_t*);
