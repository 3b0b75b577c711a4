"""A planar ALBlock in one piece: expand 1x1, depthwise 3x3, project 1x1, a band of rows and one group at a time.

The expanded map is the largest of the network and is never stored as a whole: one channel's band of it at a time goes
through the first level cache, and what one group's projection needs of the filtered channels stays there too.
"""

from .abi import LINE
from .common import clamp, inline, kernel, plane_size, round_up
from .pool import add_to_totals, clear_totals
from .simd import (
    LANES,
    broadcast,
    broadcast_tile,
    dot,
    even_lanes,
    first_lanes,
    fma,
    keep_separate,
    load,
    load_int,
    multiply,
    odd_lanes,
    outer,
    splat,
    store,
    store_tile,
)


@inline
def attended(arena, x, plane_factor, spatial, has_attention):
    v = load(arena, x, LANES)
    if has_attention:
        v = multiply(multiply(v, plane_factor), load(arena, spatial, LANES))
    return v


@kernel
def load_band(arena, x, y, first, rows, height, width, plane, channels, stride, channel, spatial):
    """Copies those of ``rows`` rows from ``first`` that exist, times attention; stride 2 parts odd and even columns."""
    keep_separate()
    row = round_up(width, LINE)
    half = round_up((width + 1) // 2, LINE)
    y_row = row if stride == 1 else 2 * half
    y_plane = plane_size(rows, y_row)
    has_attention = channel >= 0
    factor = splat(0.0, LANES)
    for c in range(channels):
        if has_attention:
            factor = broadcast(arena, channel + c, LANES)
        for i in range(max(0, -first), min(rows, height - first)):
            source = x + c * plane + (first + i) * row
            target = y + c * y_plane + i * y_row
            at = spatial + (first + i) * row
            if stride == 1:
                for j in range(0, row, LANES):
                    store(arena, target + j, attended(arena, source + j, factor, at + j, has_attention))
            else:
                for j in range(0, half, LANES):
                    low = attended(arena, source + 2 * j, factor, at + 2 * j, has_attention)
                    high = attended(arena, source + 2 * j + LANES, factor, at + 2 * j + LANES, has_attention)
                    store(arena, target + j, odd_lanes(low, high))
                    store(arena, target + half + j, even_lanes(low, high))


def make_expand(inputs):
    """Expand one channel from ``inputs`` planes with its weights in registers; 0: from any number of planes."""
    count_of_taps = max(1, inputs)

    @inline
    def vector(arena, x, plane, weights, w, bias, taps, count):
        v = bias
        if inputs:
            v = dot(v, taps, arena, x, plane)
        else:
            for k in range(count):
                v = fma(broadcast(weights, w + 1 + k, LANES), load(arena, x + k * plane, LANES), v)
        return clamp(v, splat(0.0, LANES), splat(6.0, LANES))

    @kernel
    def expand(arena, x, plane, x_row, y, y_row, rows, width, weights, w, count):
        keep_separate()
        bias = broadcast(weights, w, LANES)
        taps = broadcast_tile(weights, w + 1, 1, count_of_taps, 1, LANES)
        whole = width // LANES * LANES
        for _ in range(rows):
            for j in range(0, whole, LANES):
                store(arena, y + j, vector(arena, x + j, plane, weights, w, bias, taps, count))
            if whole < width:
                v = vector(arena, x + whole, plane, weights, w, bias, taps, count)
                store(arena, y + whole, first_lanes(width - whole, v, splat(0.0, LANES)))
            x += x_row
            y += y_row

    return expand


expand2, expand3, expand4, expand_any = make_expand(2), make_expand(3), make_expand(4), make_expand(0)


@inline
def expand(arena, x, plane, x_row, y, y_row, rows, width, weights, w, count):
    """The band of one expanded channel, ReLU6, zero beyond ``width``."""
    if count == 2:
        expand2(arena, x, plane, x_row, y, y_row, rows, width, weights, w, count)
    elif count == 3:
        expand3(arena, x, plane, x_row, y, y_row, rows, width, weights, w, count)
    elif count == 4:
        expand4(arena, x, plane, x_row, y, y_row, rows, width, weights, w, count)
    else:
        expand_any(arena, x, plane, x_row, y, y_row, rows, width, weights, w, count)


@inline
def taps_of_row(total, k0, k1, k2, left, middle, right):
    return fma(k2, right, fma(k1, middle, fma(k0, left, total)))


@kernel
def depthwise_band1(arena, x, x_row, y, y_row, rows, weights, w):
    """Stride 1: rows + 2 input rows -> rows. Each input row is loaded once and serves the three outputs that see it."""
    keep_separate()
    bias = broadcast(weights, w, LANES)
    k = broadcast_tile(weights, w + 1, 1, 9, 1, LANES)
    zero, six = splat(0.0, LANES), splat(6.0, LANES)
    for j in range(0, y_row, LANES):
        at = x + j
        left, middle, right = load(arena, at - 1, LANES), load(arena, at, LANES), load(arena, at + 1, LANES)
        upper = taps_of_row(bias, k[0], k[1], k[2], left, middle, right)
        at += x_row
        left, middle, right = load(arena, at - 1, LANES), load(arena, at, LANES), load(arena, at + 1, LANES)
        upper = taps_of_row(upper, k[3], k[4], k[5], left, middle, right)
        lower = taps_of_row(bias, k[0], k[1], k[2], left, middle, right)
        target = y + j
        for _ in range(rows):
            at += x_row
            left, middle, right = load(arena, at - 1, LANES), load(arena, at, LANES), load(arena, at + 1, LANES)
            done = taps_of_row(upper, k[6], k[7], k[8], left, middle, right)
            upper = taps_of_row(lower, k[3], k[4], k[5], left, middle, right)
            lower = taps_of_row(bias, k[0], k[1], k[2], left, middle, right)
            store(arena, target, clamp(done, zero, six))
            target += y_row


@kernel
def depthwise_band2(arena, x, half, x_row, y, y_row, rows, weights, w):
    """Stride 2: 2 rows + 1 input rows, odd columns then even ones, -> rows. Output j sees odd j - 1, even j, odd j."""
    keep_separate()
    bias = broadcast(weights, w, LANES)
    k = broadcast_tile(weights, w + 1, 1, 9, 1, LANES)
    zero, six = splat(0.0, LANES), splat(6.0, LANES)
    for j in range(0, y_row, LANES):
        at = x + j
        left, middle, right = load(arena, at - 1, LANES), load(arena, at + half, LANES), load(arena, at, LANES)
        upper = taps_of_row(bias, k[0], k[1], k[2], left, middle, right)
        target = y + j
        for _ in range(rows):
            at += x_row
            left, middle, right = load(arena, at - 1, LANES), load(arena, at + half, LANES), load(arena, at, LANES)
            upper = taps_of_row(upper, k[3], k[4], k[5], left, middle, right)
            at += x_row
            left, middle, right = load(arena, at - 1, LANES), load(arena, at + half, LANES), load(arena, at, LANES)
            done = taps_of_row(upper, k[6], k[7], k[8], left, middle, right)
            upper = taps_of_row(bias, k[0], k[1], k[2], left, middle, right)
            store(arena, target, clamp(done, zero, six))
            target += y_row


def make_project(rows, cols):
    @kernel
    def project(arena, x, x_plane, inputs, y, y_plane, first, last, weights, w, outputs):
        """``rows`` outputs of a group, over the floats ``first`` to ``last`` of the band; returns where it stopped."""
        keep_separate()
        while first + cols * LANES <= last:
            sums = broadcast_tile(weights, w, 1, rows, cols, LANES)
            at = w
            for k in range(inputs):
                at += outputs
                sums = outer(sums, weights, at, 1, arena, x + k * x_plane + first, rows, cols)
            store_tile(arena, y + first, y_plane, sums, cols)
            first += cols * LANES
        return first

    return project


project11, project21, project31, project41 = (make_project(rows, 1) for rows in (1, 2, 3, 4))
project14, project24, project34, project44 = (make_project(rows, 4) for rows in (1, 2, 3, 4))


@inline
def project(arena, x, x_plane, inputs, y, y_plane, size, weights, w, outputs):
    """All outputs of a group: up to four of them by four vectors at once."""
    done = 0
    while done < outputs:
        rows = min(4, outputs - done)
        target = y + done * y_plane
        if rows == 4:
            i = project44(arena, x, x_plane, inputs, target, y_plane, 0, size, weights, w + done, outputs)
            project41(arena, x, x_plane, inputs, target, y_plane, i, size, weights, w + done, outputs)
        elif rows == 3:
            i = project34(arena, x, x_plane, inputs, target, y_plane, 0, size, weights, w + done, outputs)
            project31(arena, x, x_plane, inputs, target, y_plane, i, size, weights, w + done, outputs)
        elif rows == 2:
            i = project24(arena, x, x_plane, inputs, target, y_plane, 0, size, weights, w + done, outputs)
            project21(arena, x, x_plane, inputs, target, y_plane, i, size, weights, w + done, outputs)
        else:
            i = project14(arena, x, x_plane, inputs, target, y_plane, 0, size, weights, w + done, outputs)
            project11(arena, x, x_plane, inputs, target, y_plane, i, size, weights, w + done, outputs)
        done += rows


@kernel
def planar_block(
    arena, weights, tables, x, y, w, table, height, width, new_height, new_width, stride, channels, groups,
    expand_inputs, project_inputs, outputs, band, x_plane, y_plane, channel, spatial, totals, source,
    expanded, filtered,
):  # fmt: skip
    """(channels, H, row) -> (groups * outputs, H', row'), with the sum and maximum of each channel.

    The weights of a group: for each channel that its projection reads, the expansion's bias and weights and the
    depthwise bias and weights; then the projection's biases and weights, input by input. ``table`` holds the first
    input plane of each expanded channel, in the order after the shuffle.
    """
    keep_separate()
    half = round_up((width + 1) // 2, LINE)
    source_row = round_up(width, LINE) if stride == 1 else 2 * half
    y_row = round_up(new_width, LINE)
    expanded_row = LINE + source_row
    all_rows = stride * band + 3 - stride
    source_plane = plane_size(all_rows, source_row)
    filtered_plane = plane_size(band, new_width)
    weights_of_channel = 1 + expand_inputs + 10
    clear_totals(arena, totals, groups * outputs)
    for i in range(0, expanded_row * all_rows + LINE, LANES):  # the padding between rows stays zero from here on
        store(arena, expanded + i, splat(0.0, LANES))
    for start in range(0, new_height, band):
        new_rows = min(band, new_height - start)
        rows = stride * new_rows + 3 - stride
        first = stride * start - 1
        load_band(arena, x, source, first, all_rows, height, width, x_plane, channels, stride, channel, spatial)
        skipped = max(0, -first)
        inside = min(rows, height - first) - skipped
        if skipped + inside < rows:  # the row below the map; the row above it was never written
            for i in range(0, expanded_row, LANES):
                store(arena, expanded + (rows - 1) * expanded_row + i, splat(0.0, LANES))
        at = w
        for q in range(groups):
            for c in range(project_inputs):
                plane = source + load_int(tables, table + q * project_inputs + c) * source_plane
                plane += skipped * source_row
                target = expanded + skipped * expanded_row + LINE
                depthwise_at = at + 1 + expand_inputs
                result = filtered + c * filtered_plane
                if stride == 1:
                    expand(
                        arena, plane, source_plane, source_row, target, expanded_row, inside, width, weights, at,
                        expand_inputs,
                    )  # fmt: skip
                    depthwise_band1(
                        arena, expanded + LINE, expanded_row, result, y_row, new_rows, weights, depthwise_at
                    )
                else:
                    expand(
                        arena, plane, source_plane, source_row, target, expanded_row, inside, width // 2, weights, at,
                        expand_inputs,
                    )  # fmt: skip
                    expand(
                        arena, plane + half, source_plane, source_row, target + half, expanded_row, inside,
                        (width + 1) // 2, weights, at, expand_inputs,
                    )  # fmt: skip
                    depthwise_band2(
                        arena, expanded + LINE, half, expanded_row, result, y_row, new_rows, weights, depthwise_at
                    )
                at += weights_of_channel
            target = y + q * outputs * y_plane + start * y_row
            project(
                arena, filtered, filtered_plane, project_inputs, target, y_plane, new_rows * y_row, weights, at, outputs
            )
            add_to_totals(arena, target, y_plane, outputs, new_rows, new_width, totals + q * outputs * 2 * LINE)
            at += outputs * (1 + project_inputs)
