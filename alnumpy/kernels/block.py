"""A planar ALBlock in one piece: expand 1x1, depthwise 3x3, project 1x1, for a band of rows and one group at a time.

The expanded map is the largest of the network and is never stored as a whole: one channel's band of it at a time goes
through the first level cache, and what one group's projection needs of the filtered channels stays there too.
"""

from .abi import LINE
from .common import inline, kernel, plane_size, round_up
from .pool import add_to_totals, clear_totals
from .simd import (
    LANES,
    add,
    broadcast,
    broadcast_tile,
    clamp,
    dot,
    even_lanes,
    fma,
    lanes_between,
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
def half_row(width):
    """The number of floats that hold the odd or the even columns of a row."""
    return round_up((width + 1) // 2, LINE // 2)


@inline
def attended(arena, x, plane_factor, spatial, has_attention):
    v = load(arena, x, LANES)
    if has_attention:
        v = multiply(multiply(v, plane_factor), load(arena, spatial, LANES))
    return v


@kernel
def load_band(arena, x, y, first, rows, height, width, plane, channels, stride, channel, spatial):
    """Copies ``rows`` rows from ``first``, if they exist, times attention; stride 2 separates odd and even columns."""
    row = round_up(width, LINE)
    half = half_row(width)
    y_row = row if stride == 1 else round_up(2 * half, LINE)
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
            else:  # backwards: the last odd vector may reach into the even half, whose first is stored later
                for j in range((half - 1) // LANES * LANES, -1, -LANES):
                    low = attended(arena, source + 2 * j, factor, at + 2 * j, has_attention)
                    high = attended(arena, source + 2 * j + LANES, factor, at + 2 * j + LANES, has_attention)
                    store(arena, target + j, odd_lanes(low, high))
                    store(arena, target + half + j, even_lanes(low, high))


def make_expand(inputs):
    """Expands one channel from ``inputs`` planes, with its weights in registers; 0 stands for any number of planes."""
    count_of_taps = max(1, inputs)

    @kernel
    def expand(arena, x, plane, y, size, weights, w, count):
        bias = broadcast(weights, w, LANES)
        taps = broadcast_tile(weights, w + 1, 1, count_of_taps, 1, LANES)
        zero, six = splat(0.0, LANES), splat(6.0, LANES)
        for i in range(0, size, LANES):
            v = bias
            if inputs:
                v = dot(v, taps, arena, x + i, plane)
            else:
                for k in range(count):
                    v = fma(broadcast(weights, w + 1 + k, LANES), load(arena, x + k * plane + i, LANES), v)
            store(arena, y + i, clamp(v, zero, six))

    return expand


expand_i2, expand_i3, expand_i4, expand_any = make_expand(2), make_expand(3), make_expand(4), make_expand(0)


@kernel
def expand(arena, x, plane, y, size, weights, w, count):
    """Computes ``size`` floats of one expanded channel, with ReLU6."""
    if count == 2:
        expand_i2(arena, x, plane, y, size, weights, w, count)
    elif count == 3:
        expand_i3(arena, x, plane, y, size, weights, w, count)
    elif count == 4:
        expand_i4(arena, x, plane, y, size, weights, w, count)
    else:
        expand_any(arena, x, plane, y, size, weights, w, count)


@inline
def taps_of_row(k0, k1, k2, row):
    """One row's share of a sum; other units of the CPU than those that multiply add up the shares."""
    left, middle, right = row
    return fma(k2, right, fma(k1, middle, multiply(k0, left)))


@inline
def row_of(arena, left, middle, right, first, last, zero):
    """The inputs of the three taps of a row: zero beyond the left and right edges, where memory holds other rows."""
    return (
        lanes_between(first, LANES, load(arena, left, LANES), zero),
        load(arena, middle, LANES),
        lanes_between(0, last, load(arena, right, LANES), zero),
    )


@kernel
def depthwise_band_s1(arena, x, x_row, width, y, y_row, rows, weights, w):
    """Stride 1: rows + 2 input rows -> rows. Each input row is loaded once, for the three outputs that see it."""
    bias = broadcast(weights, w, LANES)
    k = broadcast_tile(weights, w + 1, 1, 9, 1, LANES)
    zero, six = splat(0.0, LANES), splat(6.0, LANES)
    for j in range(0, width, LANES):
        first, last = 1 if j == 0 else 0, width - 1 - j
        at = x + j
        row = row_of(arena, at - 1, at, at + 1, first, last, zero)
        upper = add(bias, taps_of_row(k[0], k[1], k[2], row))
        at += x_row
        row = row_of(arena, at - 1, at, at + 1, first, last, zero)
        upper = add(upper, taps_of_row(k[3], k[4], k[5], row))
        lower = add(bias, taps_of_row(k[0], k[1], k[2], row))
        target = y + j
        for _ in range(rows):
            at += x_row
            row = row_of(arena, at - 1, at, at + 1, first, last, zero)
            done = add(upper, taps_of_row(k[6], k[7], k[8], row))
            upper = add(lower, taps_of_row(k[3], k[4], k[5], row))
            lower = add(bias, taps_of_row(k[0], k[1], k[2], row))
            store(arena, target, clamp(done, zero, six))
            target += y_row


@kernel
def depthwise_band_s2(arena, x, half, x_row, width, y, y_row, rows, weights, w):
    """Stride 2: 2 rows + 1 input rows, odd columns then even ones, -> rows. Output j sees odd j - 1, even j, odd j."""
    bias = broadcast(weights, w, LANES)
    k = broadcast_tile(weights, w + 1, 1, 9, 1, LANES)
    zero, six = splat(0.0, LANES), splat(6.0, LANES)
    for j in range(0, (width + 1) // 2, LANES):
        first, last = 1 if j == 0 else 0, width // 2 - j
        at = x + j
        row = row_of(arena, at - 1, at + half, at, first, last, zero)
        upper = add(bias, taps_of_row(k[0], k[1], k[2], row))
        target = y + j
        for _ in range(rows):
            at += x_row
            row = row_of(arena, at - 1, at + half, at, first, last, zero)
            upper = add(upper, taps_of_row(k[3], k[4], k[5], row))
            at += x_row
            row = row_of(arena, at - 1, at + half, at, first, last, zero)
            done = add(upper, taps_of_row(k[6], k[7], k[8], row))
            upper = add(bias, taps_of_row(k[0], k[1], k[2], row))
            store(arena, target, clamp(done, zero, six))
            target += y_row


def make_project(rows):
    @kernel
    def project(arena, x, x_plane, inputs, y, y_plane, size, weights, w, outputs):
        """Computes ``rows`` outputs of a group, four vectors at once and then one by one."""
        i = 0
        while i + 4 * LANES <= size:
            sums = broadcast_tile(weights, w, 1, rows, 4, LANES)
            for k in range(inputs):
                sums = outer(sums, weights, w + (k + 1) * outputs, 1, arena, x + k * x_plane + i, rows, 4)
            store_tile(arena, y + i, y_plane, sums, 4)
            i += 4 * LANES
        while i < size:
            sums = broadcast_tile(weights, w, 1, rows, 1, LANES)
            for k in range(inputs):
                sums = outer(sums, weights, w + (k + 1) * outputs, 1, arena, x + k * x_plane + i, rows, 1)
            store_tile(arena, y + i, y_plane, sums, 1)
            i += LANES

    return project


project_1x4, project_2x4, project_3x4, project_4x4 = make_project(1), make_project(2), make_project(3), make_project(4)


@kernel
def project(arena, x, x_plane, inputs, y, y_plane, size, weights, w, outputs):
    """Computes all outputs of a group, up to four of them at once."""
    for done in range(0, outputs, 4):
        target = y + done * y_plane
        rows = outputs - done
        if rows >= 4:
            project_4x4(arena, x, x_plane, inputs, target, y_plane, size, weights, w + done, outputs)
        elif rows == 3:
            project_3x4(arena, x, x_plane, inputs, target, y_plane, size, weights, w + done, outputs)
        elif rows == 2:
            project_2x4(arena, x, x_plane, inputs, target, y_plane, size, weights, w + done, outputs)
        else:
            project_1x4(arena, x, x_plane, inputs, target, y_plane, size, weights, w + done, outputs)


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
    half = half_row(width)
    source_row = round_up(width if stride == 1 else 2 * half, LINE)
    y_row = round_up(new_width, LINE)
    all_rows = stride * band + 3 - stride
    source_plane = plane_size(all_rows, source_row)
    filtered_plane = plane_size(band, new_width)
    clear_totals(arena, totals, groups * outputs)
    expanded += LINE  # the row before the first is read, but not used
    for i in range(0, source_row, LANES):  # the row above the map
        store(arena, expanded + i, splat(0.0, LANES))
    start = 0
    while start < new_height:  # a range with a variable step would divide
        new_rows = min(band, new_height - start)
        rows = stride * new_rows + 3 - stride
        first = stride * start - 1
        load_band(arena, x, source, first, all_rows, height, width, x_plane, channels, stride, channel, spatial)
        skipped = max(0, -first) * source_row
        inside = (min(rows, height - first)) * source_row - skipped
        if skipped + inside < rows * source_row:  # the row below the map
            for i in range(skipped + inside, rows * source_row, LANES):
                store(arena, expanded + i, splat(0.0, LANES))
        at = w
        for q in range(groups):
            for c in range(project_inputs):
                plane = source + load_int(tables, table + q * project_inputs + c) * source_plane + skipped
                expand(arena, plane, source_plane, expanded + skipped, inside, weights, at, expand_inputs)
                at += 1 + expand_inputs
                result = filtered + c * filtered_plane
                if stride == 1:
                    depthwise_band_s1(arena, expanded, source_row, width, result, y_row, new_rows, weights, at)
                else:
                    depthwise_band_s2(arena, expanded, half, source_row, width, result, y_row, new_rows, weights, at)
                at += 10
            target = y + q * outputs * y_plane + start * y_row
            project(
                arena, filtered, filtered_plane, project_inputs, target, y_plane, new_rows * y_row, weights, at, outputs
            )
            add_to_totals(arena, target, y_plane, outputs, new_rows, new_width, totals + q * outputs * 2 * LINE)
            at += outputs * (1 + project_inputs)
        start += band
