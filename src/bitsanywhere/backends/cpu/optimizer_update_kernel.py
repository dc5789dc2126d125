"""Device code of the optimizer updates: many tensors in one launch, 8-bit or float32 states."""

from __future__ import annotations

from typing import Any

from bitsanywhere.backends.cpu import decode, dynamic8, simd
from bitsanywhere.backends.cpu import optimizer_words as words
from bitsanywhere.backends.cpu.machine import Machine
from bitsanywhere.backends.cpu.optimizer_numbers import PLACES
from bitsanywhere.backends.cpu.optimizer_update import BLOCK, BLOCKS_A_TASK, ROW
from bitsanywhere.ops.optimizer_rules import RULES


def build(machine: Machine, rule: str, dtype: str, bits: int, dynamic: bool) -> Any:
    """The kernel of one rule.

    Args:
        dynamic: whether the codebooks are the dynamic maps, signed and unsigned.

    Its arguments: task counter; table of tensors, see `optimizer_update.py`; number of tasks;
    numbers, see `optimizer_numbers.py`; for each state the address of its 256 values and of the
    codes of all grid points.
    """
    facts, move = RULES[rule], words.rule(rule)
    slow, second, coupled = facts.rows == 2, facts.states == 2, not facts.decoupled
    read, write, size = simd.reader(dtype), simd.writer(dtype), simd.SIZE[dtype]
    address_of, take, store, least = simd.address_of, simd.take, simd.store, simd.least
    load_i64, load_u8, load_u8x16 = words.load_i64, simd.load_u8, simd.load_u8x16
    load_f32, load_f32x16 = simd.load_f32, simd.load_f32x16
    mul, fma, splat = simd.mul, simd.fma, simd.splat_f32x16
    values_of, look_up, grid_point = words.values_of, words.look_up, simd.grid_point
    magnitude, larger, largest = simd.magnitude, simd.larger, simd.largest
    zeros_i32, reciprocal = simd.zeros_i32x16, decode.reciprocal
    constant, choose, moves = words.constant, words.choose, words.moves
    buffer = words.buffer
    times, still, decay, weight_decay = (
        PLACES["times"],
        PLACES["still"],
        PLACES["decay"],
        PLACES["coupled"],
    )
    scale, lowest = PLACES["scale"], PLACES["least"]
    quantized, arithmetic = bits == 8, dynamic and machine.level != "generic"
    width, part = 1 if quantized else 4, 4 * BLOCK
    inline = decode.inline

    @inline
    def copy(to, source, count):
        whole = count - (count & 15)
        for i in range(0, whole, 16):
            store(to + i, load_u8x16(source + i))
        for i in range(whole, count):
            store(to + i, load_u8(source + i))

    @inline
    def load_state(place, values, factor):
        if quantized:
            return mul(values_of(values, place), splat(factor))
        return load_f32x16(place)

    def encode_with(codes_of):
        @inline
        def encode(to, source, count, absmax, table):
            for i in range(count, (count + 15) & -16):
                store(source + i * 4, decode.ZERO)
            top = zeros_i32(0)
            for i in range(0, count, 16):
                top = larger(top, magnitude(load_f32x16(source + i * 4)))
            whole = largest(top)
            store(absmax, whole)
            factor = splat(reciprocal(whole))
            for i in range(0, count, 16):
                place = source + i * 4
                scaled = mul(load_f32x16(place), factor)
                if arithmetic:
                    store(to + i, codes_of(scaled))
                else:
                    store(place, grid_point(scaled))
                    look_up(to + i, table, place)

        return encode

    encode1, encode2 = (encode_with(dynamic8.encoder(machine.level, x)) for x in (True, False))

    def update(args):
        table, tasks, k = args[1], args[2], args[3]
        values1, codes1, values2, codes2 = args[4], args[5], args[6], args[7]
        # The new states of a block; then the block at a tensor's end, if it is not whole.
        kept = buffer(0)
        spare = kept + 3 * BLOCK * 4
        row = table
        while True:
            task = take(address_of(args), 1)
            if task >= tasks:
                return
            while task >= load_i64(row + ROW + 56):
                row += ROW
            g, p, a, c = load_i64(row), load_i64(row + 8), load_i64(row + 16), load_i64(row + 24)
            amax, cmax, n = load_i64(row + 32), load_i64(row + 40), load_i64(row + 48)
            blocks = (n + BLOCK - 1) // BLOCK
            start = (task - load_i64(row + 56)) * BLOCKS_A_TASK
            b, bmax = a + n * width, amax + blocks * 4
            for block in range(start, least(start + BLOCKS_A_TASK, blocks)):
                first = block * BLOCK
                count = least(n - first, BLOCK)
                at_g, at_p, at_a = g + first * size, p + first * size, a + first * width
                at_b, at_c = b + first * width, c + first * width
                if count < BLOCK:
                    at_g, at_p, at_a = spare, spare + part, spare + 2 * part
                    at_b, at_c = spare + 3 * part, spare + 4 * part
                    copy(at_g, g + first * size, count * size)
                    copy(at_p, p + first * size, count * size)
                    copy(at_a, a + first * width, count * width)
                    if slow:
                        copy(at_b, b + first * width, count * width)
                    if second:
                        copy(at_c, c + first * width, count * width)
                factor_a = load_f32(amax + block * 4) if quantized else decode.ONE
                factor_b = load_f32(bmax + block * 4) if quantized and slow else decode.ONE
                factor_c = load_f32(cmax + block * 4) if quantized and second else decode.ONE
                to_a, to_b, to_c = at_a, at_b, at_c
                if quantized:
                    to_a, to_b, to_c = kept, kept + part, kept + 2 * part
                for i in range(0, count, 16):
                    raw, old_p = read(at_g + i * size), read(at_p + i * size)
                    moved = moves(raw, constant(k, lowest))
                    grad = mul(raw, constant(k, scale))
                    if coupled:
                        grad = fma(old_p, constant(k, weight_decay), grad)
                    old_a = load_state(at_a + i * width, values1, factor_a)
                    old_b = load_state(at_b + i * width, values1, factor_b) if slow else old_a
                    old_c = load_state(at_c + i * width, values2, factor_c) if second else old_a
                    step, new_a, new_b, new_c = move(grad, old_a, old_b, old_c, k)
                    new_a = choose(moved, new_a, old_a)
                    new_b = choose(moved, new_b, old_b)
                    new_c = choose(moved, new_c, old_c)
                    store(to_a + i * 4, new_a)
                    if slow:
                        store(to_b + i * 4, new_b)
                    if second:
                        store(to_c + i * 4, new_c)
                    # A choice between new_p and old_p would become a masked store, which AMD's
                    # processors take dozens of cycles for.
                    step = choose(moved, step, constant(k, still))
                    shrink = choose(moved, constant(k, decay), splat(decode.ONE))
                    write(at_p + i * size, fma(step, constant(k, times), mul(old_p, shrink)))
                if quantized:
                    encode1(at_a, to_a, count, amax + block * 4, codes1)
                    if slow:
                        encode1(at_b, to_b, count, bmax + block * 4, codes1)
                    if second:
                        encode2(at_c, to_c, count, cmax + block * 4, codes2)
                if count < BLOCK:
                    copy(p + first * size, at_p, count * size)
                    copy(a + first * width, at_a, count * width)
                    if slow:
                        copy(b + first * width, at_b, count * width)
                    if second:
                        copy(c + first * width, at_c, count * width)

    return update
