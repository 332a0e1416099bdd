// What the parts offer each other. Plain C++: only bind.cpp knows torch's tensors.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <vector>

#include "vec.h"

// f(begin, end) over 0..size on torch's own threads; at least `grain` to each.
void parallel(long size, long grain, const std::function<void(long, long)>& f);

// f(i) for each of 0..size; a thread takes the next one when it is done with its last.
void share(long size, const std::function<void(long)>& f);

// Memory that is kept from call to call and only grows: fresh pages cost more than what is done
// with them.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }
  float* take(size_t floats) {
    if (floats > size_) {
      std::free(data_);
      size_ = floats + floats / 2;
      data_ = static_cast<float*>(std::aligned_alloc(64, (size_ * sizeof(float) + 63) / 64 * 64));
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  size_t size_ = 0;
};

// linear.cpp
long panels_of(long outputs);
void pack_weight(const bf16* weight, long outputs, long inputs, bf16* packed);
void linear(const bf16* x, long x_stride, long rows, long inputs, const bf16* packed,
            const bf16* bias, long outputs, bf16* out);  // bias padded to whole panels

// elementwise.cpp; T is float or bf16
template <class T>
void add_rms_norm(const T* x, T* residual, const float* weight, float eps, long rows, long width, T* out);
template <class T>
void rotate(T* heads, long stride, const float* cos, const float* sin, const float* weight, float eps,
            long rows, long num_heads, long head_dim);
template <class T>
void silu_mul(const T* gate_up, long rows, long inner, T* out);

// argmax.cpp; NaN is the largest
template <class T>
void argmax(const T* x, long stride, long rows, long width, T* values, int64_t* indices);

// attention.cpp: one step over the pages of one layer.
struct Step {
  long tokens, sequences, heads, kv_heads, head_dim, value_dim;
  long query_stride, key_stride, value_stride;  // between tokens
  // Elements: block to block, keys to values (0: a value is the first value_dim of its key).
  long block_size, block_stride, side_stride;
  long table_width;
  const int64_t* slots;    // [tokens]
  const int32_t* tables;   // [sequences, table_width]
  const int32_t* starts;   // [sequences + 1]
  const int32_t* lengths;  // [sequences]
  float scale;             // of scores
  long window;             // keys that a query sees, its own included
  const float* sinks;      // [heads] logits that take weight and have no value; null: none
};
template <class T>
void write_pages(const Step& step, const T* key, const T* value, T* layer);
template <class T>
void attend(const Step& step, const T* query, const T* layer, T* out);
