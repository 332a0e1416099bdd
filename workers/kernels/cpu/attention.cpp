// One step over the pages of one layer: what is new is written, then each sequence attends.
#include "attention.h"

template <class T>
void write_pages(const Step& step, const T* key, const T* value, T* layer) {
  long row = step.kv_heads * step.head_dim;
  for (long i = 0; i < step.tokens; i++) {
    long block = step.slots[i] / step.block_size, offset = step.slots[i] % step.block_size;
    T* to = layer + block * step.block_stride + offset * row;
    std::memcpy(to, key + i * step.key_stride, row * sizeof(T));
    if (value) std::memcpy(to + step.side_stride, value + i * step.value_stride, row * sizeof(T));
  }
}

template <class T>
void attend(const Step& step, const T* query, const T* layer, T* out) {
  long group = step.heads / step.kv_heads;
  long parts = (group + kTileRows - 1) / kTileRows, most = (group + parts - 1) / parts;
  long per_tile = kTileRows / most;
  std::vector<long> decodes;
  std::vector<Tile> tiles;
  for (long i = 0; i < step.sequences; i++) {
    long queries = step.starts[i + 1] - step.starts[i];
    if (queries == 1) {
      decodes.push_back(i);
      continue;
    }
    // The last queries see most: they come first, so that threads end together.
    for (long first = (queries - 1) / per_tile * per_tile; first >= 0; first -= per_tile)
      for (long head = 0; head < step.heads; head += group)
        for (long part = 0; part < group; part += most)
          tiles.push_back({i, first, std::min(per_tile, queries - first), head + part,
                           std::min(most, group - part)});
  }
  if (!decodes.empty()) attend_decodes(step, decodes, query, layer, out);
  attend_tiles(step, tiles, query, layer, out);
}

#define FOR(T)                                                         \
  template void write_pages(const Step&, const T*, const T*, T*);      \
  template void attend(const Step&, const T*, const T*, T*);
FOR(float)
FOR(bf16)
