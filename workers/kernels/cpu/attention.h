// What the two kinds of attention share.
#pragma once
#include "ops.h"

// Rows of one KV head's keys or values, found through the block table.
template <class T>
struct Pages {
  const Step& step;
  const T* layer;
  const int32_t* table;

  const T* block(long index) const { return layer + table[index] * step.block_stride; }
  const T* key(long position, long kv_head) const {
    long row = position % step.block_size;
    return block(position / step.block_size) +
           (row * step.kv_heads + kv_head) * step.head_dim;
  }
};

// decode.cpp: sequences with one query each.
template <class T>
void attend_decodes(const Step& step, const std::vector<long>& sequences, const T* query,
                    const T* layer, T* out);

// chunk.cpp: a tile is some queries of one sequence and some heads that share a KV head.
struct Tile {
  long sequence, first_query, queries, first_head, heads;
};
constexpr long kTileRows = 96;  // at most: queries times heads
template <class T>
void attend_tiles(const Step& step, const std::vector<Tile>& tiles, const T* query, const T* layer,
                  T* out);
