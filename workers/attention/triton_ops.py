"""Triton kernels of attention over pages. What differs from step to step (slots, tables, starts,
lengths) is read from tensors, so that a captured graph can be run again on other values.

`*_pages` points to one layer's keys or values in block 0; PAGE_STRIDE elements further is block 1.
Keys are WIDTH wide, values VALUE. REST, if not 0, says that a value is the first VALUE elements of
its key (latent attention): keys are loaded in two pieces, the one that is a value as well, and the
other, WIDTH - VALUE padded to REST. WINDOW: keys that a query sees, its own included; 0: all before
it. SINKS: each head begins with a logit that has no value. Scores are kept in units of log2, as
exp2 is what the hardware has. What lies beyond a sequence's length is never loaded: it may be NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Views into one buffer of a step's inputs: they begin anywhere, and a kernel compiled for each
# alignment would be compiled while somebody waits.
INPUTS = ("slots", "tables", "starts", "lengths", "table_stride")

# Where a running maximum begins: less than any score, and exp2 of its difference to -inf is 0.
NOTHING = tl.constexpr(-1e30)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=INPUTS, do_not_specialize_on_alignment=INPUTS)
def write_pages(
    key, value, slots, key_pages, value_pages, key_stride, value_stride,
    PAGE_STRIDE: tl.constexpr, PAGE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    SIDES: tl.constexpr,
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
        tl.store(key_pages + to, k, mask=inside)
        if SIDES == 2:
            v = tl.load(value + token * value_stride + column, mask=inside)
            tl.store(value_pages + to, v, mask=inside)


@triton.jit
def load_query(
    row, inside, WIDTH: tl.constexpr, VALUE: tl.constexpr, COLUMNS: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """row: pointers [ROWS] to queries. [ROWS, COLUMNS] and [ROWS, REST], or the first alone."""
    column = tl.arange(0, COLUMNS)
    mask = inside[:, None] & (column < VALUE)[None, :]
    q = tl.load(row[:, None] + column[None, :], mask=mask, other=0.0)
    if REST:
        column = tl.arange(0, REST)
        mask = inside[:, None] & (column < WIDTH - VALUE)[None, :]
        rest = tl.load(row[:, None] + VALUE + column[None, :], mask=mask, other=0.0)
    else:
        rest = q
    return q, rest


@triton.jit
def begin(sinks, head, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SINKS: tl.constexpr):
    """The running softmax (peak, total, acc) of rows that have seen nothing but their sink."""
    if SINKS:
        peak = tl.load(sinks + head + tl.zeros([ROWS], tl.int32)).to(tl.float32) * LOG2_E
        total = tl.full([ROWS], 1.0, tl.float32)
    else:
        peak = tl.full([ROWS], NOTHING, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
    return peak, total, tl.zeros([ROWS, COLUMNS], tl.float32)


@triton.jit
def attend(
    q, q_rest, peak, total, acc, position, end, own, table, key_pages, value_pages, head, scale,
    PAGE_STRIDE: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    VALUE: tl.constexpr, COLUMNS: tl.constexpr, REST: tl.constexpr, WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of keys into the running softmax (peak, total, acc) of q's rows. position: of the
    tile's keys; those from `end` on do not exist. MASKED: row r sees keys up to own[r], of these
    the last WINDOW."""
    column = tl.arange(0, COLUMNS)
    exists = position < end
    block = tl.load(table + position // PAGE, mask=exists, other=0).to(tl.int64)
    at = block * PAGE_STRIDE + (position % PAGE * HEADS + head) * WIDTH
    # Keys [COLUMNS, KEYS], values [KEYS, COLUMNS].
    k = tl.load(
        key_pages + at[None, :] + column[:, None],
        mask=exists[None, :] & (column < VALUE)[:, None],
        other=0.0,
    )
    scores = tl.dot(q, k, input_precision="tf32x3")
    if REST:
        further = tl.arange(0, REST)
        k_rest = tl.load(
            key_pages + at[None, :] + VALUE + further[:, None],
            mask=exists[None, :] & (further < WIDTH - VALUE)[:, None],
            other=0.0,
        )
        scores = tl.dot(q_rest, k_rest, scores, input_precision="tf32x3")
    scores *= scale
    seen = exists[None, :]
    if MASKED:
        seen = seen & (position[None, :] <= own[:, None])
        if WINDOW:
            seen = seen & (position[None, :] > own[:, None] - WINDOW)
    scores = tl.where(seen, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - new_peak[:, None])
    keep = tl.exp2(peak - new_peak)
    if REST:
        v = tl.trans(k)
    else:
        v = tl.load(
            value_pages + at[:, None] + column[None, :],
            mask=exists[:, None] & (column < VALUE)[None, :],
            other=0.0,
        )
    acc = tl.dot(weights.to(v.dtype), v, acc * keep[:, None], input_precision="tf32x3")
    return new_peak, total * keep + tl.sum(weights, 1), acc


@triton.jit
def seen_keys(length, WINDOW: tl.constexpr):
    """By the only query of a sequence, which is its last token."""
    seen = length
    if WINDOW:
        seen = tl.minimum(length, WINDOW)
    return seen


@triton.jit
def split_keys(seen, SPLITS: tl.constexpr, LEAST: tl.constexpr):
    """Keys of one split of a sequence. By its own length alone: the same sums in every batch."""
    return tl.maximum(LEAST, tl.cdiv(tl.cdiv(seen, SPLITS), LEAST) * LEAST)


@triton.jit(do_not_specialize=INPUTS, do_not_specialize_on_alignment=INPUTS)
def decode_splits(
    query, key_pages, value_pages, tables, lengths, partial, partial_log,
    scale, query_stride, table_stride,
    PAGE_STRIDE: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
    WIDTH: tl.constexpr, VALUE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    REST: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr, SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
):  # fmt: skip
    """Program (sequence, ROWS of the GROUP query rows of a KV head, p) attends to splits p,
    p + programs, ... and leaves each split's output and log2 of its sum of exponentials:
    partial [n, HEADS * GROUP, SPLITS, VALUE], partial_log [n, HEADS * GROUP, SPLITS]."""
    sequence = tl.program_id(0).to(tl.int64)
    tiles: tl.constexpr = (GROUP + ROWS - 1) // ROWS
    head = tl.program_id(1) // tiles
    length = tl.load(lengths + sequence)
    seen = seen_keys(length, WINDOW)
    size = split_keys(seen, SPLITS, LEAST)
    if tl.program_id(2) * size >= seen:
        return
    row = tl.program_id(1) % tiles * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < GROUP
    own_head = head * GROUP + row
    q, q_rest = load_query(
        query + sequence * query_stride + own_head * WIDTH, inside, WIDTH, VALUE, COLUMNS, REST
    )
    for split in range(tl.program_id(2), tl.cdiv(seen, size), tl.num_programs(2)):
        first = length - seen + split * size
        end = tl.minimum(first + size, length)
        peak, total, acc = begin(query, 0, ROWS, COLUMNS, False)
        for start in range(first, end, KEYS):
            peak, total, acc = attend(
                q, q_rest, peak, total, acc, start + tl.arange(0, KEYS), end, row,
                tables + sequence * table_stride, key_pages, value_pages, head, scale,
                PAGE_STRIDE, PAGE, HEADS, WIDTH, VALUE, COLUMNS, REST, WINDOW, False,
            )  # fmt: skip
        to = (sequence * (HEADS * GROUP) + own_head) * SPLITS + split
        tl.store(partial_log + to, peak + tl.log2(total), mask=inside)
        to = partial + to[:, None] * VALUE + column[None, :]
        mask = inside[:, None] & (column < VALUE)[None, :]
        tl.store(to, acc / total[:, None], mask=mask)


@triton.jit(do_not_specialize=INPUTS, do_not_specialize_on_alignment=INPUTS)
def merge_splits(
    partial, partial_log, lengths, sinks, out,
    HEADS: tl.constexpr, VALUE: tl.constexpr, COLUMNS: tl.constexpr, WINDOW: tl.constexpr,
    SINKS: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """A program for each (sequence, query head): out [n, HEADS, VALUE]; zeros where length is 0."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    seen = seen_keys(tl.load(lengths + sequence), WINDOW)
    row = sequence * HEADS + head
    split = tl.arange(0, SPLITS)
    column = tl.arange(0, COLUMNS)
    used = split < tl.cdiv(seen, split_keys(seen, SPLITS, LEAST))
    logs = tl.load(partial_log + row * SPLITS + split, mask=used, other=float("-inf"))
    peak = tl.maximum(tl.max(logs, 0), NOTHING)
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        peak = tl.maximum(peak, sink)
    weights = tl.exp2(logs - peak)
    total = tl.sum(weights, 0)
    if SINKS:
        total += tl.exp2(sink - peak)
    outputs = tl.load(
        partial + (row * SPLITS + split)[:, None] * VALUE + column[None, :],
        mask=used[:, None] & (column < VALUE)[None, :],
        other=0.0,
    )
    result = tl.sum(weights[:, None] * outputs, 0)
    result /= tl.maximum(total, 1.0)  # 1 at least, but for no split at all
    tl.store(out + row * VALUE + column, result.to(out.dtype.element_ty), mask=column < VALUE)


@triton.jit(do_not_specialize=INPUTS, do_not_specialize_on_alignment=INPUTS)
def attend_chunks(
    query, key_pages, value_pages, tables, starts, lengths, sinks, out,
    scale, query_stride, table_stride,
    PAGE_STRIDE: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
    WIDTH: tl.constexpr, VALUE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    REST: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Program (tile of ROWS queries, query head, chunk), as in FlashAttention-2 (Dao, 2023).
    out [T, HEADS * GROUP, VALUE]."""
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
    inside = row < queries
    token = (start + row).to(tl.int64)
    q, q_rest = load_query(
        query + token * query_stride + head * WIDTH, inside, WIDTH, VALUE, COLUMNS, REST
    )
    own = length - queries + tl.minimum(row, queries - 1)
    peak, total, acc = begin(sinks, head, ROWS, COLUMNS, SINKS)
    table = tables + chunk.to(tl.int64) * table_stride
    seen_by_all = length - queries + first + 1
    end = tl.minimum(length, seen_by_all + ROWS - 1)
    left = 0
    if WINDOW:
        # Keys that the first rows see and the last do not.
        at = tl.maximum(seen_by_all - WINDOW, 0)
        left = at + tl.cdiv(tl.maximum(end - WINDOW - at, 0), KEYS) * KEYS
        for key in range(at, left, KEYS):
            peak, total, acc = attend(
                q, q_rest, peak, total, acc, key + tl.arange(0, KEYS), end, own,
                table, key_pages, value_pages, head // GROUP, scale,
                PAGE_STRIDE, PAGE, HEADS, WIDTH, VALUE, COLUMNS, REST, WINDOW, True,
            )  # fmt: skip
    whole = left + tl.maximum(seen_by_all - left, 0) // KEYS * KEYS
    for key in range(left, whole, KEYS):
        peak, total, acc = attend(
            q, q_rest, peak, total, acc, key + tl.arange(0, KEYS), end, own,
            table, key_pages, value_pages, head // GROUP, scale,
            PAGE_STRIDE, PAGE, HEADS, WIDTH, VALUE, COLUMNS, REST, WINDOW, False,
        )  # fmt: skip
    for key in range(whole, end, KEYS):
        peak, total, acc = attend(
            q, q_rest, peak, total, acc, key + tl.arange(0, KEYS), end, own,
            table, key_pages, value_pages, head // GROUP, scale,
            PAGE_STRIDE, PAGE, HEADS, WIDTH, VALUE, COLUMNS, REST, WINDOW, True,
        )  # fmt: skip
    to = out + ((token * (HEADS * GROUP) + head) * VALUE)[:, None] + column[None, :]
    mask = inside[:, None] & (column < VALUE)[None, :]
    tl.store(to, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)
