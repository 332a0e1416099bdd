"""Triton kernels of attention over pages. What differs from step to step (slots, tables, starts,
lengths) is read from tensors, so that a captured graph can be run again on other values.

`*_pages` points to one layer's keys or values in block 0; PAGE_STRIDE elements further is block 1.
Scores are kept in units of log2, as exp2 is what the hardware has. What lies beyond a sequence's
length is never loaded: it may be NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Views into one buffer of a step's inputs: they begin anywhere, and a kernel compiled for each
# alignment would be compiled while somebody waits.
INPUTS = ("slots", "tables", "starts", "lengths", "table_stride")


@triton.jit(do_not_specialize=INPUTS, do_not_specialize_on_alignment=INPUTS)
def write_pages(
    key, value, slots, key_pages, value_pages, key_stride, value_stride,
    PAGE_STRIDE: tl.constexpr, PAGE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A program for each token: its WIDTH = kv_heads * head_dim keys and values go to its slot.
    Slot -1: nowhere."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        column = tl.arange(0, TILE)
        inside = column < WIDTH
        to = slot // PAGE * PAGE_STRIDE + slot % PAGE * WIDTH + column
        k = tl.load(key + token * key_stride + column, mask=inside)
        v = tl.load(value + token * value_stride + column, mask=inside)
        tl.store(key_pages + to, k, mask=inside)
        tl.store(value_pages + to, v, mask=inside)


@triton.jit
def attend(
    q, peak, total, acc, position, end, own, table, key_pages, value_pages, head, scale,
    PAGE_STRIDE: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of keys into the running softmax (peak, total, acc) of q's rows. position: of the
    tile's keys; those from `end` on do not exist. MASKED: row r sees keys up to own[r]."""
    column = tl.arange(0, COLUMNS)
    exists = position < end
    block = tl.load(table + position // PAGE, mask=exists, other=0).to(tl.int64)
    at = block * PAGE_STRIDE + (position % PAGE * HEADS + head) * WIDTH
    # Keys [COLUMNS, KEYS], values [KEYS, COLUMNS].
    k = tl.load(
        key_pages + at[None, :] + column[:, None],
        mask=exists[None, :] & (column < WIDTH)[:, None],
        other=0.0,
    )
    scores = tl.dot(q, k, input_precision="tf32x3") * scale
    seen = exists[None, :]
    if MASKED:
        seen = seen & (position[None, :] <= own[:, None])
    scores = tl.where(seen, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - new_peak[:, None])
    keep = tl.exp2(peak - new_peak)
    v = tl.load(
        value_pages + at[:, None] + column[None, :],
        mask=exists[:, None] & (column < WIDTH)[None, :],
        other=0.0,
    )
    acc = tl.dot(weights.to(v.dtype), v, acc * keep[:, None], input_precision="tf32x3")
    return new_peak, total * keep + tl.sum(weights, 1), acc


@triton.jit
def split_keys(length, SPLITS: tl.constexpr, LEAST: tl.constexpr):
    """Keys of one split of a sequence. By its own length alone: the same sums in every batch."""
    return tl.maximum(LEAST, tl.cdiv(tl.cdiv(length, SPLITS), LEAST) * LEAST)


@triton.jit(do_not_specialize=INPUTS, do_not_specialize_on_alignment=INPUTS)
def decode_splits(
    query, key_pages, value_pages, tables, lengths, partial, partial_log,
    scale, query_stride, table_stride,
    PAGE_STRIDE: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, KEYS: tl.constexpr,
    SPLITS: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """Program (sequence, KV head, p) attends with the GROUP query rows of its head to splits p,
    p + programs, ... and leaves each split's output and log2 of its sum of exponentials:
    partial [n, HEADS * GROUP, SPLITS, WIDTH], partial_log [n, HEADS * GROUP, SPLITS]."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(lengths + sequence)
    size = split_keys(length, SPLITS, LEAST)
    if tl.program_id(2) * size >= length:
        return
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < GROUP)[:, None] & (column < WIDTH)[None, :]
    own_head = head * GROUP + row
    q = tl.load(
        query + sequence * query_stride + own_head[:, None] * WIDTH + column[None, :],
        mask=inside,
        other=0.0,
    )
    for split in range(tl.program_id(2), tl.cdiv(length, size), tl.num_programs(2)):
        first = split * size
        end = tl.minimum(first + size, length)
        peak = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(first, end, KEYS):
            peak, total, acc = attend(
                q, peak, total, acc, start + tl.arange(0, KEYS), end, row,
                tables + sequence * table_stride, key_pages, value_pages, head, scale,
                PAGE_STRIDE, PAGE, HEADS, WIDTH, COLUMNS, False,
            )  # fmt: skip
        to = (sequence * (HEADS * GROUP) + own_head) * SPLITS + split
        tl.store(partial_log + to, peak + tl.log2(total), mask=row < GROUP)
        to = partial + to[:, None] * WIDTH + column[None, :]
        tl.store(to, acc / total[:, None], mask=inside)


@triton.jit(do_not_specialize=INPUTS, do_not_specialize_on_alignment=INPUTS)
def merge_splits(
    partial, partial_log, lengths, out,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """A program for each (sequence, query head): out [n, HEADS, WIDTH]; zeros where length is 0."""
    sequence = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + sequence)
    row = sequence * HEADS + tl.program_id(1)
    split = tl.arange(0, SPLITS)
    column = tl.arange(0, COLUMNS)
    used = split < tl.cdiv(length, split_keys(length, SPLITS, LEAST))
    logs = tl.load(partial_log + row * SPLITS + split, mask=used, other=float("-inf"))
    weights = tl.where(used, tl.exp2(logs - tl.max(logs, 0)), 0.0)
    outputs = tl.load(
        partial + (row * SPLITS + split)[:, None] * WIDTH + column[None, :],
        mask=used[:, None] & (column < WIDTH)[None, :],
        other=0.0,
    )
    result = tl.sum(weights[:, None] * outputs, 0)
    result /= tl.maximum(tl.sum(weights, 0), 1.0)  # 1 at least, but for no split at all
    tl.store(out + row * WIDTH + column, result.to(out.dtype.element_ty), mask=column < WIDTH)


@triton.jit(do_not_specialize=INPUTS, do_not_specialize_on_alignment=INPUTS)
def attend_chunks(
    query, key_pages, value_pages, tables, starts, lengths, out, scale, query_stride, table_stride,
    PAGE_STRIDE: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Program (tile of ROWS queries, query head, chunk), as in FlashAttention-2 (Dao, 2023).
    out [T, HEADS * GROUP, WIDTH]."""
    chunk = tl.program_id(2)
    start = tl.load(starts + chunk)
    queries = tl.load(starts + chunk + 1) - start
    length = tl.load(lengths + chunk)
    # Tiles that see most begin first.
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    if first >= queries:
        return
    head = tl.program_id(1)
    row = first + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < queries)[:, None] & (column < WIDTH)[None, :]
    token = (start + row).to(tl.int64)[:, None]
    q = tl.load(
        query + token * query_stride + head * WIDTH + column[None, :], mask=inside, other=0.0
    )
    own = length - queries + row
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    table = tables + chunk.to(tl.int64) * table_stride
    seen_by_all = length - queries + first + 1
    end = tl.minimum(length, seen_by_all + ROWS - 1)
    whole = seen_by_all // KEYS * KEYS
    for at in range(0, whole, KEYS):
        peak, total, acc = attend(
            q, peak, total, acc, at + tl.arange(0, KEYS), end, own,
            table, key_pages, value_pages, head // GROUP, scale,
            PAGE_STRIDE, PAGE, HEADS, WIDTH, COLUMNS, False,
        )  # fmt: skip
    for at in range(whole, end, KEYS):
        peak, total, acc = attend(
            q, peak, total, acc, at + tl.arange(0, KEYS), end, own,
            table, key_pages, value_pages, head // GROUP, scale,
            PAGE_STRIDE, PAGE, HEADS, WIDTH, COLUMNS, True,
        )  # fmt: skip
    to = out + (token * (HEADS * GROUP) + head) * WIDTH + column[None, :]
    tl.store(to, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)
