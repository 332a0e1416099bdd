// Causal attention of many queries, by tiles of queries and keys with the running softmax of
// FlashAttention (Dao et al., 2022). Sums are float32.
#include "attention.h"
#include "tile.h"

namespace {

constexpr long kQueryRows = kTileRows;
constexpr long kKeys = 96;  // of a tile

struct TileMemory {
  float *query, *keys, *values, *scores, *out, *most, *total, *keep;
  long value_row;  // from one value to the next
  static long floats(const Step& step) {
    return (kQueryRows + kKeys) * (step.head_dim + step.value_dim) + kQueryRows * (kKeys + 3);
  }
  TileMemory(float* memory, const Step& step) {
    query = memory;
    out = query + kQueryRows * step.head_dim;
    keys = out + kQueryRows * step.value_dim;
    bool apart = step.side_stride != 0;
    values = apart ? keys + kKeys * step.head_dim : keys;
    value_row = apart ? step.value_dim : step.head_dim;
    scores = keys + kKeys * (step.head_dim + step.value_dim);
    most = scores + kKeys * kQueryRows;
    total = most + kQueryRows;
    keep = total + kQueryRows;
  }
};

template <class T>
void widen_rows(const Pages<T>& pages, long first, long count, long kv_head, const TileMemory& m) {
  long dim = pages.step.head_dim, side = pages.step.side_stride;
  for (long t = 0; t < count; t++) {
    const T* key = pages.key(first + t, kv_head);
    for (long d = 0; d < dim; d += kLanes) store(m.keys + t * dim + d, load(key + d));
    for (long d = 0; side && d < dim; d += kLanes)
      store(m.values + t * dim + d, load(key + side + d));
  }
}

// scores [keys][kQueryRows] = keys . query; rows of the tile are columns here, so that the softmax
// over keys needs no sums across a vector.
void tile_scores(const TileMemory& m, long keys, long columns, long dim) {
  for (long t = 0; t < keys; t += kRows)
    for (long c = 0; c < columns; c += kPair)
      with_rows(std::min<long>(kRows, keys - t), [&](auto n) {
        constexpr int MR = decltype(n)::value;
        Pair acc[MR] = {};
        tile<MR>(dim, m.keys + t * dim, 1, dim, m.query + c * dim, kPair, acc);
        for (int i = 0; i < MR; i++) {
          store(m.scores + (t + i) * kQueryRows + c, acc[i]);
        }
      });
}

// The running softmax over `keys` more keys, the first of them at `position`. EDGE: some of them
// lie before a row's window.
template <bool EDGE>
void tile_softmax(const TileMemory& m, const float* last_seen, float window, long position,
                  long keys, long columns) {
  for (long c = 0; c < columns; c += kLanes) {
    vf limit = load(last_seen + c), before = load(m.most + c), most = before;
    for (long t = 0; t < keys; t++) {
      float* at = m.scores + t * kQueryRows + c;
      vf seen = float(position + t) <= limit ? load(at) : splat(-INFINITY);
      if constexpr (EDGE) seen = float(position + t) + window > limit ? seen : splat(-INFINITY);
      store(at, seen);
      most = max(most, seen);
    }
    // A row that has seen nothing yet stays at -inf; its weights must be 0, not e^(inf - inf).
    vf base = most == -INFINITY ? splat(0) : most;
    vf total = {};
    for (long t = 0; t < keys; t++) {
      float* at = m.scores + t * kQueryRows + c;
      vf weight = exp(load(at) - base);
      store(at, weight);
      total += weight;
    }
    vf keep = exp(before - base);
    store(m.keep + c, keep);
    store(m.total + c, load(m.total + c) * keep + total);
    store(m.most + c, most);
  }
}

void tile_mix(const TileMemory& m, long keys, long rows, long dim) {
  for (long r = 0; r < rows; r += kRows)
    for (long d = 0; d < dim; d += kPair)
      with_rows(std::min<long>(kRows, rows - r), [&](auto n) {
        constexpr int MR = decltype(n)::value;
        Pair acc[MR];
        for (int i = 0; i < MR; i++) {
          const float* out = m.out + (r + i) * dim + d;
          acc[i] = {load(out) * m.keep[r + i], load(out + kLanes) * m.keep[r + i]};
        }
        tile<MR>(keys, m.scores + r, kQueryRows, 1, m.values + d, m.value_row, acc);
        for (int i = 0; i < MR; i++) {
          store(m.out + (r + i) * dim + d, acc[i]);
        }
      });
}

template <class T>
void chunk_tile(const Step& step, const Tile& work, const T* query, const Pages<T>& pages,
                float* memory, T* out) {
  long dim = step.head_dim, value_dim = step.value_dim, heads = work.heads;
  long rows = work.queries * heads, columns = (rows + kPair - 1) / kPair * kPair;
  long start = step.starts[work.sequence] + work.first_query;
  long length = step.lengths[work.sequence];
  long queries = step.starts[work.sequence + 1] - step.starts[work.sequence];
  long position = length - queries + work.first_query;  // of the first query
  long kv_head = work.first_head / (step.heads / step.kv_heads);
  TileMemory m(memory, step);
  float last_seen[kQueryRows];
  // Row r is query r / heads under head r % heads. Packed as columns for tile_scores.
  for (long r = 0; r < columns; r++) {
    bool real = r < rows;
    long head = work.first_head + r % heads;
    const T* row = query + (start + r / heads) * step.query_stride + head * dim;
    float* to = m.query + r / kPair * kPair * dim + r % kPair;
    for (long d = 0; d < dim; d++) to[d * kPair] = real ? to_float(row[d]) * step.scale : 0;
    last_seen[r] = real ? position + r / heads : 0;
    bool sink = real && step.sinks;  // a sink is what the running softmax begins with
    m.most[r] = sink ? step.sinks[head] : -INFINITY;
    m.total[r] = sink ? 1 : 0;
  }
  std::fill_n(m.out, rows * value_dim, 0.0f);
  long end = position + work.queries;
  for (long first = std::max(0L, position + 1 - step.window); first < end; first += kKeys) {
    long keys = std::min(kKeys, end - first);
    widen_rows(pages, first, keys, kv_head, m);
    tile_scores(m, keys, columns, dim);
    if (first + step.window < end)
      tile_softmax<true>(m, last_seen, float(step.window), first, keys, columns);
    else
      tile_softmax<false>(m, last_seen, 0, first, keys, columns);
    tile_mix(m, keys, rows, value_dim);
  }
  for (long r = 0; r < rows; r++) {
    T* to = out + ((start + r / heads) * step.heads + work.first_head + r % heads) * value_dim;
    for (long d = 0; d < value_dim; d += kLanes)
      store(to + d, load(m.out + r * value_dim + d) / m.total[r]);
  }
}

}  // namespace

template <class T>
void attend_tiles(const Step& step, const std::vector<Tile>& tiles, const T* query, const T* layer,
                  T* out) {
  share(tiles.size(), [&](long i) {
    static thread_local Scratch own;
    Pages<T> pages{step, layer, step.tables + tiles[i].sequence * step.table_width};
    chunk_tile(step, tiles[i], query, pages, own.take(TileMemory::floats(step)), out);
  });
}

template void attend_tiles(const Step&, const std::vector<Tile>&, const float*, const float*,
                           float*);
template void attend_tiles(const Step&, const std::vector<Tile>&, const bf16*, const bf16*, bf16*);
