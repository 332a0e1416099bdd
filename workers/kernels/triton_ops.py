"""Triton kernels between attention calls. Pointers are to the first element; a kernel's loop over a
row is one masked tile, so every width works. float32 inside, rounded where it is stored."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_rms_norm(
    x, residual, weight, out, eps, WIDTH: tl.constexpr, TILE: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    """A program for each row of [T, WIDTH]."""
    at = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, TILE)
    inside = column < WIDTH
    row = tl.load(residual + at + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        row += tl.load(x + at + column, mask=inside, other=0.0).to(tl.float32)
        # What later layers read is the rounded sum, so that is what is normalised.
        stored = row.to(residual.dtype.element_ty)
        tl.store(residual + at + column, stored, mask=inside)
        row = stored.to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.sum(row * row) / WIDTH + eps)
    row *= scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at + column, row.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rotate(
    heads, cos, sin, weight, eps, token_stride,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """A program for ROWS heads of one token, in place. TILE covers half a head."""
    HALF: tl.constexpr = WIDTH // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, TILE)[None, :]
    inside = (head < HEADS) & (column < HALF)
    at = heads + token * token_stride + head * WIDTH + column
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        scale = (1.0 / tl.sqrt_rn(squares / WIDTH + eps))[:, None]
        own = weight + head * WIDTH + column
        first *= scale * tl.load(own, mask=inside, other=0.0).to(tl.float32)
        second *= scale * tl.load(own + HALF, mask=inside, other=0.0).to(tl.float32)
    angle = token * HALF + column
    c = tl.load(cos + angle, mask=column < HALF, other=0.0)
    s = tl.load(sin + angle, mask=column < HALF, other=0.0)
    kind = heads.dtype.element_ty
    tl.store(at, (first * c - second * s).to(kind), mask=inside)
    tl.store(at + HALF, (second * c + first * s).to(kind), mask=inside)


@triton.jit
def silu_mul(gate_up, out, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """A program for TILE columns of one row: [T, 2 WIDTH] -> [T, WIDTH]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < WIDTH
    at = gate_up + row * 2 * WIDTH + column
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * WIDTH + column, result.to(out.dtype.element_ty), mask=inside)
