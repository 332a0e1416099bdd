// Attention of one query to all before it: blocks are streamed in the order of memory, all KV heads
// at once, a long sequence in splits that are merged (flash-decoding; Dao et al., 2023).
#include "attention.h"

namespace {

constexpr long kSplit = 256;  // keys of a decode that are one piece of work, whatever the batch

// scores[g][t] = query[g] . key[t] for one KV head and N keys.
template <int N, class T>
void score(const float* query, long group, long head_dim, const T* key, long stride, float* scores,
           long room) {
  for (long g = 0; g < group; g += 2) {
    const float *q0 = query + g * head_dim, *q1 = g + 1 < group ? q0 + head_dim : q0;
    vf sums[2][N] = {};
    for (long d = 0; d < head_dim; d += kPair) {
      Pair a = load_pair(q0 + d), b = load_pair(q1 + d);
#pragma GCC unroll 4
      for (int t = 0; t < N; t++) {
        Pair k = load_pair(key + t * stride + d);
        sums[0][t] += a.low * k.low;
        sums[1][t] += b.low * k.low;
        sums[0][t] += a.high * k.high;
        sums[1][t] += b.high * k.high;
      }
    }
    for (long h = g; h < std::min(g + 2, group); h++) {
      const vf* s = sums[h - g];
      if constexpr (N == 4) sum4(s[0], s[1], s[2], s[3], scores + h * room);
      else scores[h * room] = sum(s[0]);
    }
  }
}

// out[g] += sum over t of weights[g][t] * value[t] for one KV head and N values.
template <int N, class T>
void mix(const float* weights, long room, long group, long value_dim, const T* value, long stride,
         float* out) {
  for (long g = 0; g < group; g += 2) {
    bool two = g + 1 < group;
    const float *w0 = weights + g * room, *w1 = two ? w0 + room : w0;
    float *out0 = out + g * value_dim, *out1 = two ? out0 + value_dim : out0;
    vf by0[N], by1[N];
    for (int t = 0; t < N; t++) {
      by0[t] = splat(w0[t]);
      by1[t] = splat(w1[t]);
    }
    for (long d = 0; d < value_dim; d += kPair) {
      Pair a = load_pair(out0 + d), b = load_pair(out1 + d);
#pragma GCC unroll 4
      for (int t = 0; t < N; t++) {
        Pair x = load_pair(value + t * stride + d);
        a = {a.low + x.low * by0[t], a.high + x.high * by0[t]};
        b = {b.low + x.low * by1[t], b.high + x.high * by1[t]};
      }
      store(out0 + d, a);
      if (two) store(out1 + d, b);
    }
  }
}

// What a split of a decode leaves: for each head the largest score, the sum of weights, the mix.
struct Partial {
  float *most, *total, *mix;
  static long floats(const Step& step) { return step.heads * (2 + step.value_dim); }
  Partial(float* memory, const Step& step)
      : most(memory), total(memory + step.heads), mix(memory + 2 * step.heads) {}
};

template <class T>
void fetch(const T* from, long count) {
  const char* bytes = reinterpret_cast<const char*>(from);
  for (long i = 0; i < count * long(sizeof(T)); i += 64) __builtin_prefetch(bytes + i);
}

// Scores of one head over one block, in whole vectors.
long room_of(const Step& step) { return (step.block_size + kLanes - 1) / kLanes * kLanes; }

// Turns scores into weights; what was mixed before counts less where a higher score has come.
void weigh(float* scores, long keys, long value_dim, float& most, float& total, float* mixed) {
  long padded = (keys + kLanes - 1) / kLanes * kLanes;
  for (long i = keys; i < padded; i++) scores[i] = -INFINITY;
  vf highest = splat(most), sums = {};
  for (long i = 0; i < padded; i += kLanes) highest = max(highest, load(scores + i));
  float now = max(highest);
  for (long i = 0; i < padded; i += kLanes) {
    vf weights = exp(load(scores + i) - now);
    store(scores + i, weights);
    sums += weights;
  }
  if (now != most) {
    float keep = std::exp(most - now);
    total *= keep;
    for (long d = 0; d < value_dim; d += kLanes) store(mixed + d, load(mixed + d) * keep);
    most = now;
  }
  total += sum(sums);
}

// Memory is read in its own order, four tokens with all their heads at a time, and the next four
// are fetched meanwhile: four rows at once are more streams than the hardware follows by itself.
template <class T>
void decode_block(const Step& step, const float* query, const T* block, const T* next, long keys,
                  Partial& partial, float* scores) {
  long dim = step.head_dim, group = step.heads / step.kv_heads, stride = step.kv_heads * dim;
  long value_dim = step.value_dim, room = room_of(step);
  auto by_four = [&](const T* rows, const T* after, const auto& four, const auto& one) {
    long t = 0;
    for (; t + 4 <= keys; t += 4) {
      const T* ahead = t + 8 <= keys ? rows + (t + 4) * stride : after;
      for (long kv = 0; kv < step.kv_heads; kv++) {
        fetch(ahead + 4 * kv * dim, 4 * dim);
        four(rows + t * stride + kv * dim, kv * group, scores + kv * group * room + t);
      }
    }
    for (; t < keys; t++)
      for (long kv = 0; kv < step.kv_heads; kv++)
        one(rows + t * stride + kv * dim, kv * group, scores + kv * group * room + t);
  };
  const T* values = block + step.side_stride;
  by_four(
      block, values,
      [&](const T* key, long h, float* to) { score<4>(query + h * dim, group, dim, key, stride, to, room); },
      [&](const T* key, long h, float* to) { score<1>(query + h * dim, group, dim, key, stride, to, room); });
  for (long h = 0; h < step.heads; h++)
    weigh(scores + h * room, keys, value_dim, partial.most[h], partial.total[h],
          partial.mix + h * value_dim);
  by_four(
      values, next,
      [&](const T* value, long h, const float* w) { mix<4>(w, room, group, value_dim, value, stride, partial.mix + h * value_dim); },
      [&](const T* value, long h, const float* w) { mix<1>(w, room, group, value_dim, value, stride, partial.mix + h * value_dim); });
}

// Keys first..last of a sequence with one query.
template <class T>
void decode_split(const Step& step, const T* query, const Pages<T>& pages, long first, long last,
                  Partial partial, float* scratch) {
  long dim = step.head_dim, size = step.block_size;
  float* scaled = scratch;
  float* scores = scratch + step.heads * dim;
  float scale = step.scale;
  for (long j = 0; j < step.heads * dim; j += kPair) {
    Pair q = load_pair(query + j);
    store(scaled + j, Pair{q.low * scale, q.high * scale});
  }
  for (long h = 0; h < step.heads; h++) {
    partial.most[h] = -INFINITY;
    partial.total[h] = 0;
  }
  std::fill_n(partial.mix, step.heads * step.value_dim, 0.0f);
  long index = first / size, row = step.kv_heads * dim;
  const T* block = pages.block(index);
  for (long from = first % size; first < last; from = 0) {  // a window begins anywhere
    long keys = std::min(size - from, last - first);
    first += keys;
    const T* next = first < last ? pages.block(++index) : block;
    decode_block(step, scaled, block + from * row, next, keys, partial, scores);
    block = next;
  }
}

// The sink joins here, once for all splits.
template <class T>
void merge(const Step& step, float* memory, long splits, T* out) {
  long dim = step.value_dim, floats = Partial::floats(step);
  for (long h = 0; h < step.heads; h++) {
    float most = step.sinks ? step.sinks[h] : -INFINITY;
    for (long i = 0; i < splits; i++) {
      float there = Partial(memory + i * floats, step).most[h];
      most = there > most ? there : most;
    }
    float total = step.sinks ? std::exp(step.sinks[h] - most) : 0;
    for (long i = 0; i < splits; i++) {
      Partial part(memory + i * floats, step);
      part.most[h] = std::exp(part.most[h] - most);
      total += part.total[h] * part.most[h];
    }
    for (long d = 0; d < dim; d += kPair) {
      Pair sums = {};
      for (long i = 0; i < splits; i++) {
        Partial part(memory + i * floats, step);
        Pair there = load_pair(part.mix + h * dim + d);
        sums.low += there.low * part.most[h];
        sums.high += there.high * part.most[h];
      }
      store(out + h * dim + d, Pair{sums.low / total, sums.high / total});
    }
  }
}

}  // namespace

template <class T>
void attend_decodes(const Step& step, const std::vector<long>& sequences, const T* query,
                    const T* layer, T* out) {
  struct Piece {
    long sequence, first, last, partial;
  };
  static thread_local Scratch memory;
  std::vector<Piece> pieces;
  std::vector<long> begins;
  long split = std::max<long>(1, kSplit / step.block_size) * step.block_size;
  for (long sequence : sequences) {
    begins.push_back(pieces.size());
    long length = step.lengths[sequence];
    for (long first = std::max(0L, length - step.window); first < length;) {
      long last = std::min(first / split * split + split, length);
      pieces.push_back({sequence, first, last, long(pieces.size())});
      first = last;
    }
  }
  begins.push_back(pieces.size());
  long floats = Partial::floats(step);
  float* partials = memory.take(pieces.size() * floats);
  parallel(pieces.size(), 1, [&](long begin, long end) {
    static thread_local Scratch own;
    float* scratch = own.take(step.heads * (step.head_dim + room_of(step)));
    for (long i = begin; i < end; i++) {
      const Piece& piece = pieces[i];
      Pages<T> pages{step, layer, step.tables + piece.sequence * step.table_width};
      decode_split(step, query + step.starts[piece.sequence] * step.query_stride, pages,
                   piece.first, piece.last, Partial(partials + i * floats, step), scratch);
    }
  });
  for (size_t i = 0; i < sequences.size(); i++)
    merge(step, partials + begins[i] * floats, begins[i + 1] - begins[i],
          out + step.starts[sequences[i]] * step.heads * step.value_dim);
}

template void attend_decodes(const Step&, const std::vector<long>&, const float*, const float*,
                             float*);
template void attend_decodes(const Step&, const std::vector<long>&, const bf16*, const bf16*,
                             bf16*);
