// What stands between the products: each reads and writes its rows once.
#include "ops.h"

namespace {

constexpr long kGrain = 32768;  // elements worth a thread

template <class T>
float mean_square(const T* x, long width) {
  vf sums = {};
  long j = 0;
  for (; j + kLanes <= width; j += kLanes) sums += load(x + j) * load(x + j);
  float total = sum(sums);
  for (; j < width; j++) total += to_float(x[j]) * to_float(x[j]);
  return total / width;
}

template <class T>
void scale_row(const T* x, const float* weight, float scale, long width, T* out) {
  long j = 0;
  for (; j + kLanes <= width; j += kLanes) store(out + j, load(x + j) * scale * load(weight + j));
  for (; j < width; j++) put(out + j, to_float(x[j]) * scale * weight[j]);
}

template <class T>
void rotate_head(T* head, const float* cos, const float* sin, long half) {
  long j = 0;
  for (; j + kLanes <= half; j += kLanes) {
    vf first = load(head + j), second = load(head + half + j);
    vf c = load(cos + j), s = load(sin + j);
    store(head + j, first * c - second * s);
    store(head + half + j, second * c + first * s);
  }
  for (; j < half; j++) {
    float first = to_float(head[j]), second = to_float(head[half + j]);
    put(head + j, first * cos[j] - second * sin[j]);
    put(head + half + j, second * cos[j] + first * sin[j]);
  }
}

}  // namespace

template <class T>
void add_rms_norm(const T* x, T* residual, const float* weight, float eps, long rows, long width,
                  T* out) {
  parallel(rows, 1 + kGrain / width, [&](long begin, long end) {
    for (long i = begin; i < end; i++) {
      T* row = residual + i * width;
      if (x) {
        const T* more = x + i * width;
        long j = 0;
        for (; j + kLanes <= width; j += kLanes) store(row + j, load(row + j) + load(more + j));
        for (; j < width; j++) put(row + j, to_float(row[j]) + to_float(more[j]));
      }
      float scale = 1.0f / std::sqrt(mean_square(row, width) + eps);
      scale_row(row, weight, scale, width, out + i * width);
    }
  });
}

template <class T>
void rotate(T* heads, long stride, const float* cos, const float* sin, const float* weight,
            float eps, long rows, long num_heads, long head_dim) {
  long half = head_dim / 2;
  parallel(rows, 1 + kGrain / (num_heads * head_dim), [&](long begin, long end) {
    for (long i = begin; i < end; i++)
      for (long h = 0; h < num_heads; h++) {
        T* head = heads + i * stride + h * head_dim;
        if (weight) {
          float scale = 1.0f / std::sqrt(mean_square(head, head_dim) + eps);
          scale_row(head, weight + h * head_dim, scale, head_dim, head);
        }
        rotate_head(head, cos + i * half, sin + i * half, half);
      }
  });
}

template <class T>
void silu_mul(const T* gate_up, long rows, long inner, T* out) {
  parallel(rows, 1 + kGrain / inner, [&](long begin, long end) {
    for (long i = begin; i < end; i++) {
      const T *gate = gate_up + i * 2 * inner, *up = gate + inner;
      T* to = out + i * inner;
      long j = 0;
      for (; j + kLanes <= inner; j += kLanes) {
        vf g = load(gate + j);
        vf low = g > -88.0f ? g : splat(-88.0f);  // beyond, e^-g is more than a float holds
        store(to + j, g / (1.0f + exp(-low)) * load(up + j));
      }
      for (; j < inner; j++) {
        float g = to_float(gate[j]);
        put(to + j, g / (1.0f + std::exp(-g)) * to_float(up[j]));
      }
    }
  });
}

#define FOR(T)                                                                                    \
  template void add_rms_norm(const T*, T*, const float*, float, long, long, T*);                  \
  template void rotate(T*, long, const float*, const float*, const float*, float, long, long,     \
                       long);                                                                    \
  template void silu_mul(const T*, long, long, T*);
FOR(float)
FOR(bf16)
