// Vectors of floats as the compiler's own type, one source for AVX2 and AVX-512; intrinsics only where
// the compiler does not find the instruction.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float vf __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

struct bf16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// What the compiler makes of its own conversions and broadcasts is half as fast.
#if defined(__AVX512F__)
inline vf splat(float x) { return (vf)_mm512_set1_ps(x); }
inline vu widen(const bf16* p) {
  return (vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void narrow(vu x, bf16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)x));
}
#else
inline vf splat(float x) { return (vf)_mm256_set1_ps(x); }
inline vu widen(const bf16* p) {
  return (vu)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void narrow(vu x, bf16* p) {
  __m256i both = _mm256_packus_epi32((__m256i)x, (__m256i)x);
  __m128i low = _mm256_castsi256_si128(_mm256_permute4x64_epi64(both, 0x08));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), low);
}
#endif

// Round to nearest even, as torch does; a NaN stays one.
inline uint16_t round_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void put(float* to, float x) { *to = x; }
inline void put(bf16* to, float x) { to->bits = round_bits(x); }

inline vf load(const float* p) { return *reinterpret_cast<const vf*>(p); }
inline vf load(const bf16* p) { return reinterpret_cast<vf>(widen(p) << 16); }
inline void store(float* p, vf x) { *reinterpret_cast<vf*>(p) = x; }
// The upper half of each lane, rounded; the lower is what is left of it.
inline vu round_lanes(vf x) {
  vu bits = reinterpret_cast<vu>(x);
  vu nan = reinterpret_cast<vu>(x != x);
  return ((bits + 0x7fffu + ((bits >> 16) & 1u)) & ~nan) | (0x7fc00000u & nan);
}
inline void store(bf16* p, vf x) { narrow(round_lanes(x) >> 16, p); }

// Two vectors of neighbours. Of bf16 they are the even and the odd ones: a shift and a mask widen
// both, which is half the work of keeping their order. What is multiplied element by element or
// summed does not care, and store() puts them back.
struct Pair {
  vf low, high;
};
constexpr int kPair = 2 * kLanes;

inline Pair load_pair(const float* p) { return {load(p), load(p + kLanes)}; }
inline Pair load_pair(const bf16* p) {
  vu both = *reinterpret_cast<const vu*>(p);
  return {reinterpret_cast<vf>(both << 16), reinterpret_cast<vf>(both & 0xffff0000u)};
}
inline void store(float* p, Pair x) {
  store(p, x.low);
  store(p + kLanes, x.high);
}
inline void store(bf16* p, Pair x) {
  *reinterpret_cast<vu*>(p) = round_lanes(x.low) >> 16 | (round_lanes(x.high) & 0xffff0000u);
}

// Across lanes: by intrinsics, as the compiler would take the lanes out one by one.
inline __m256 fold(vf x) {
#if defined(__AVX512F__)
  __m512 wide = (__m512)x;
  return _mm256_add_ps(_mm512_castps512_ps256(wide),
                       _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(wide), 1)));
#else
  return (__m256)x;
#endif
}
inline void sum4(vf a, vf b, vf c, vf d, float* to) {
  __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}
inline float sum(vf x) {
  float four[4];
  sum4(x, vf{}, vf{}, vf{}, four);
  return four[0];
}
inline float max(vf x) {
  float lanes[kLanes], most = x[0];
  *reinterpret_cast<vf*>(lanes) = x;
  for (int i = 1; i < kLanes; i++) most = lanes[i] > most ? lanes[i] : most;
  return most;
}
// A NaN in a stays, one in b is passed over.
inline vf max(vf a, vf b) { return b > a ? b : a; }

// e^x to about 2 units in the last place, for x <= 88; below -87 it is 0 (Cephes' expf).
inline vf exp(vf x) {
  vi tiny = x < -87.0f;
  x = max(x, splat(-87.0f));
  vf scaled = x * 1.44269504088896341f + 12582912.0f;  // the integer stands in the low bits
  vf n = scaled - 12582912.0f;
  vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  vf y = p * r * r + r + 1.0f;
  vi power = (__builtin_convertvector(n, vi) + 127) << 23;
  vf result = y * reinterpret_cast<vf>(power);
  return reinterpret_cast<vf>(reinterpret_cast<vi>(result) & ~tiny);
}
