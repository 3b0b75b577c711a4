"""Explicit vectors of float32 for Numba: types and operations that LLVM has and Python lacks.

A kernel addresses memory as ``(base, index)``: the address of a float32 buffer as an int64, and an element index. All
operations also work on tiles, which are tuples of vectors, element by element; loops over a tile are unrolled when the
kernel is compiled and its vectors stay in registers. ``lanes``, ``rows`` and ``cols`` must be constants.

Versions of a kernel for a fixed tile are named after it, ``name_RxC``: R rows (pixels where vectors run along channels,
channels where they run along pixels) of C vectors. Other fixed numbers follow: ``_k5`` taps, ``_s2`` stride, ``_i3``
inputs. ``make_name`` makes them.

NaN passes through ``maximum(limit, x)`` and ``clamp``: like the machine's own instructions, and unlike
LLVM's maxnum, they return the second operand where the two do not compare.
"""

from typing import Any

import numba.extending
from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import models, register_model

from .target import TARGET

LANES = TARGET.lanes  # float32 in one vector register

intrinsic: Any = numba.extending.intrinsic  # decorated functions have another signature in kernels than here
F32 = ir.FloatType()
I32 = ir.IntType(32)
I64 = ir.IntType(64)


class Vector(types.Type):
    def __init__(self, lanes):
        self.lanes = lanes
        super().__init__(name=f"float32x{lanes}")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(F32, vector.lanes))


# --- helpers that write LLVM instructions ---------------------------------------------------------------------------


def _lanes(tile):
    return (tile.dtype if isinstance(tile, types.UniTuple) else tile).lanes


def _unpack(builder, tile, value):
    if isinstance(tile, types.UniTuple):
        return [builder.extract_value(value, i) for i in range(tile.count)]
    return [value]


def _pack(builder, tile, vectors):
    if not isinstance(tile, types.UniTuple):
        return vectors[0]
    value = ir.Constant(ir.ArrayType(vectors[0].type, tile.count), ir.Undefined)
    for i, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, i)
    return value


def _offset(builder, index, by):
    return builder.add(index, by if isinstance(by, ir.Value) else ir.Constant(I64, by))


def _pointer(builder, base, index, pointee=F32):
    pointer = builder.inttoptr(base, pointee.as_pointer())
    return builder.gep(pointer, [index])


def _load(builder, base, index, lanes):
    pointer = builder.bitcast(_pointer(builder, base, index), ir.VectorType(F32, lanes).as_pointer())
    return builder.load(pointer, align=4)


def _store(builder, base, index, vector):
    pointer = builder.bitcast(_pointer(builder, base, index), vector.type.as_pointer())
    builder.store(vector, pointer, align=4)


def _splat(builder, scalar, lanes):
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def _broadcast(builder, base, index, lanes):
    return _splat(builder, builder.load(_pointer(builder, base, index)), lanes)


def _call(builder, name, *operands):
    vector = operands[0].type
    kind = ir.FunctionType(vector, [vector] * len(operands))
    return builder.call(get_or_insert_function(builder.module, kind, f"{name}.v{vector.count}f32"), operands)


def _fma(builder, a, b, c):
    return _call(builder, "llvm.fmuladd", a, b, c)


def _maximum(builder, limit, x):
    return builder.select(builder.fcmp_ordered(">", limit, x), limit, x)


def _maximum_or_nan(builder, x, y):
    highest = builder.select(builder.fcmp_unordered(">", x, y), x, y)  # x if either is NaN
    return builder.select(builder.fcmp_unordered("uno", y, y), y, highest)


def _minimum(builder, limit, x):
    return builder.select(builder.fcmp_ordered("<", limit, x), limit, x)


def _elementwise(operation):
    """An intrinsic of one to three operands, vectors or tiles; a vector among tiles serves every vector of the tile."""

    def emit(context, builder, signature, arguments):
        operands = [_unpack(builder, tile, value) for tile, value in zip(signature.args, arguments, strict=True)]
        count = max(map(len, operands))
        operands = [vectors * (count // len(vectors)) for vectors in operands]
        results = [operation(builder, *vectors) for vectors in zip(*operands, strict=True)]
        return _pack(builder, signature.return_type, results)

    def result(*tiles):
        return max(tiles, key=lambda tile: getattr(tile, "count", 0))

    return emit, result


def _unary(operation):
    emit, result = _elementwise(operation)

    @intrinsic
    def function(typingctx, a):
        return result(a)(a), emit

    return function


def _binary(operation):
    emit, result = _elementwise(operation)

    @intrinsic
    def function(typingctx, a, b):
        return result(a, b)(a, b), emit

    return function


def _ternary(operation):
    emit, result = _elementwise(operation)

    @intrinsic
    def function(typingctx, a, b, c):
        return result(a, b, c)(a, b, c), emit

    return function


# --- arithmetic on vectors and tiles --------------------------------------------------------------------------------

add = _binary(lambda b, x, y: b.fadd(x, y))
multiply = _binary(lambda b, x, y: b.fmul(x, y))
divide = _binary(lambda b, x, y: b.fdiv(x, y))
fma = _ternary(_fma)  # x * y + z, rounded once if the CPU can
maximum = _binary(_maximum)
maximum_or_nan = _binary(_maximum_or_nan)  # NaN in either order
where = _ternary(lambda b, mask, x, y: b.select(b.fcmp_ordered("!=", mask, ir.Constant(mask.type, None)), x, y))
clamp = _ternary(lambda b, x, low, high: _minimum(b, high, _maximum(b, low, x)))  # NaN stays NaN


def _rint(builder, x):
    magic = ir.Constant(
        x.type, [1.5 * 2**23] * x.type.count
    )  # floats near this are whole numbers; CPUs with only SSE2 cannot round
    return builder.fsub(builder.fadd(x, magic), magic)


rint = _unary(_rint)  # to the nearest whole number, halves to even; for -2^22 to 2^22


def _power_of_two(builder, x):
    integers = ir.VectorType(I32, x.type.count)
    exponent = builder.add(builder.fptosi(x, integers), ir.Constant(integers, [127] * x.type.count))
    return builder.bitcast(builder.shl(exponent, ir.Constant(integers, [23] * x.type.count)), x.type)


power_of_two = _unary(_power_of_two)  # for whole numbers from -127 (gives 0) to 128 (gives infinity)


# --- memory ---------------------------------------------------------------------------------------------------------


@intrinsic
def inverse(typingctx, whole):
    """1 / x of a whole number from 1 to 2^31 - 1, as float64. 32-bit CPUs cannot convert an int64."""

    def emit(context, builder, signature, arguments):
        real = builder.sitofp(builder.trunc(arguments[0], I32), ir.DoubleType())
        return builder.fdiv(ir.Constant(ir.DoubleType(), 1.0), real)

    return types.float64(types.int64), emit


@intrinsic
def quotient(typingctx, whole, divisor):
    """x // y of numbers from 0 to 2^31 - 1, where y is a constant. 32-bit CPUs cannot divide an int64."""

    def emit(context, builder, signature, arguments):
        narrow = [builder.trunc(argument, I32) for argument in arguments]
        return builder.zext(builder.udiv(*narrow), I64)

    return types.int64(types.int64, types.int64), emit


@intrinsic(prefer_literal=True)
def splat(typingctx, scalar, lanes):
    """A vector whose lanes all hold ``scalar``."""
    vector = Vector(lanes.literal_value)

    def emit(context, builder, signature, arguments):
        return _splat(builder, context.cast(builder, arguments[0], scalar, types.float32), vector.lanes)

    return vector(scalar, lanes), emit


@intrinsic(prefer_literal=True)
def splat_tile(typingctx, scalar, count, lanes):
    """A tile of ``count`` vectors whose lanes all hold ``scalar``."""
    tile = types.UniTuple(Vector(lanes.literal_value), count.literal_value)

    def emit(context, builder, signature, arguments):
        vector = _splat(builder, context.cast(builder, arguments[0], scalar, types.float32), tile.dtype.lanes)
        return _pack(builder, tile, [vector] * tile.count)

    return tile(scalar, count, lanes), emit


@intrinsic
def load_int(typingctx, base, index):
    """One int64 of a table."""

    def emit(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], arguments[1], I64))

    return types.int64(types.int64, types.int64), emit


@intrinsic(prefer_literal=True)
def load_ints(typingctx, base, index, count):
    """``count`` consecutive int64s of a table, as a tuple."""
    result = types.UniTuple(types.int64, count.literal_value)

    def emit(context, builder, signature, arguments):
        base, index, _ = arguments
        values = [builder.load(_pointer(builder, base, _offset(builder, index, i), I64)) for i in range(result.count)]
        return _pack(builder, result, values)

    return result(types.int64, types.int64, count), emit


@intrinsic
def load_float(typingctx, base, index):
    """One float32."""

    def emit(context, builder, signature, arguments):
        return builder.load(_pointer(builder, *arguments))

    return types.float32(types.int64, types.int64), emit


@intrinsic
def store_float(typingctx, base, index, value):
    """Stores one float32."""

    def emit(context, builder, signature, arguments):
        base, index, scalar = arguments
        builder.store(scalar, _pointer(builder, base, index))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), emit


@intrinsic(prefer_literal=True)
def load(typingctx, base, index, lanes):
    """The vector at ``index``, of any alignment."""
    vector = Vector(lanes.literal_value)

    def emit(context, builder, signature, arguments):
        return _load(builder, arguments[0], arguments[1], vector.lanes)

    return vector(types.int64, types.int64, lanes), emit


@intrinsic(prefer_literal=True)
def broadcast(typingctx, base, index, lanes):
    """A vector whose lanes all hold the float32 at ``index``."""
    vector = Vector(lanes.literal_value)

    def emit(context, builder, signature, arguments):
        return _broadcast(builder, arguments[0], arguments[1], vector.lanes)

    return vector(types.int64, types.int64, lanes), emit


@intrinsic(prefer_literal=True)
def gather(typingctx, base, index, stride, lanes):
    """A vector of the float32 at ``index``, ``index + stride`` and so on."""
    vector = Vector(lanes.literal_value)

    def emit(context, builder, signature, arguments):
        base, index, stride, _ = arguments
        value = ir.Constant(ir.VectorType(F32, vector.lanes), ir.Undefined)
        for i in range(vector.lanes):
            value = builder.insert_element(value, builder.load(_pointer(builder, base, index)), ir.Constant(I32, i))
            index = builder.add(index, stride)
        return value

    return vector(types.int64, types.int64, types.int64, lanes), emit


@intrinsic
def store(typingctx, base, index, vector):
    """Stores a vector at ``index``, of any alignment."""

    def emit(context, builder, signature, arguments):
        _store(builder, *arguments)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vector), emit


@intrinsic(prefer_literal=True)
def load_tile(typingctx, base, index, stride, rows, cols, lanes):
    """A tile of rows x cols vectors; vectors of a row are adjacent, rows are ``stride`` elements apart."""
    vector = Vector(lanes.literal_value)
    tile = types.UniTuple(vector, rows.literal_value * cols.literal_value)

    def emit(context, builder, signature, arguments):
        base, index, stride = arguments[:3]
        vectors = []
        for _ in range(rows.literal_value):
            for c in range(cols.literal_value):
                vectors.append(_load(builder, base, _offset(builder, index, c * vector.lanes), vector.lanes))
            index = builder.add(index, stride)
        return _pack(builder, tile, vectors)

    return tile(types.int64, types.int64, types.int64, rows, cols, lanes), emit


@intrinsic(prefer_literal=True)
def broadcast_tile(typingctx, base, index, stride, rows, cols, lanes):
    """A tile of rows x cols vectors: all of row r hold the float32 at ``index + r * stride``."""
    vector = Vector(lanes.literal_value)
    tile = types.UniTuple(vector, rows.literal_value * cols.literal_value)

    def emit(context, builder, signature, arguments):
        base, index, stride = arguments[:3]
        vectors = []
        for _ in range(rows.literal_value):
            vectors += [_broadcast(builder, base, index, vector.lanes)] * cols.literal_value
            index = builder.add(index, stride)
        return _pack(builder, tile, vectors)

    return tile(types.int64, types.int64, types.int64, rows, cols, lanes), emit


@intrinsic(prefer_literal=True)
def store_tile(typingctx, base, index, stride, tile, cols):
    """Stores a tile of rows of ``cols`` adjacent vectors; rows are ``stride`` elements apart."""

    def emit(context, builder, signature, arguments):
        base, index, stride, value, _ = arguments
        for i, vector in enumerate(_unpack(builder, tile, value)):
            row, col = divmod(i, cols.literal_value)
            if row and not col:
                index = builder.add(index, stride)
            _store(builder, base, _offset(builder, index, col * tile.dtype.lanes), vector)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, tile, cols), emit


@intrinsic(prefer_literal=True)
def store_tile_and_half(typingctx, base, index, stride, tile, cols):
    """Like ``store_tile``, but only with the lower half of the last vector of each row."""

    def emit(context, builder, signature, arguments):
        base, index, stride, value, _ = arguments
        lanes = tile.dtype.lanes
        lower = ir.Constant(ir.VectorType(I32, lanes // 2), list(range(lanes // 2)))
        for i, vector in enumerate(_unpack(builder, tile, value)):
            row, col = divmod(i, cols.literal_value)
            if row and not col:
                index = builder.add(index, stride)
            if col == cols.literal_value - 1:
                vector = builder.shuffle_vector(vector, vector, lower)
            _store(builder, base, _offset(builder, index, col * lanes), vector)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, tile, cols), emit


# --- multiply and accumulate ----------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def outer(typingctx, tile, scalars, scalar_index, scalar_stride, vectors, vector_index, rows, cols):
    """One step of a matrix product: ``tile[r, c] += scalars[scalar_index + r * scalar_stride] * vectors[c]``."""

    def emit(context, builder, signature, arguments):
        value, scalars, scalar_index, scalar_stride, vectors, vector_index = arguments[:6]
        lanes = tile.dtype.lanes
        loaded = [
            _load(builder, vectors, _offset(builder, vector_index, c * lanes), lanes) for c in range(cols.literal_value)
        ]
        sums = _unpack(builder, tile, value)
        for r in range(rows.literal_value):
            scalar = _broadcast(builder, scalars, scalar_index, lanes)
            for c, vector in enumerate(loaded):
                i = r * cols.literal_value + c
                sums[i] = _fma(builder, scalar, vector, sums[i])
            scalar_index = builder.add(scalar_index, scalar_stride)
        return _pack(builder, tile, sums)

    ints = [types.int64] * 5
    return tile(tile, *ints, rows, cols), emit


@intrinsic
def dot(typingctx, total, weights, base, index, stride):
    """``total + sum of weights[k] * (the vector at index + k * stride)`` for a tile of weights in registers."""

    def emit(context, builder, signature, arguments):
        value, weights_value, base, index, stride = arguments
        for weight in _unpack(builder, weights, weights_value):
            value = _fma(builder, weight, _load(builder, base, index, total.lanes), value)
            index = builder.add(index, stride)
        return value

    return total(total, weights, types.int64, types.int64, types.int64), emit


@intrinsic(prefer_literal=True)
def column_of_taps(typingctx, tile, base, index, stride, weights, weight_index, weight_stride, taps, cols):
    """One column of a ``taps``-high convolution kernel, for a tile of rows x cols adjacent outputs.

    ``tile[r, c] += sum over t of weights[weight_index + t * weight_stride] * (row r + t, column c)``; every input
    vector is loaded once and used for all the output rows that see it.
    """

    def emit(context, builder, signature, arguments):
        value, base, index, stride, weights, weight_index, weight_stride = arguments[:7]
        height, width, lanes = taps.literal_value, cols.literal_value, tile.dtype.lanes
        kernel = []
        for _ in range(height):
            kernel.append(_broadcast(builder, weights, weight_index, lanes))
            weight_index = builder.add(weight_index, weight_stride)
        sums = _unpack(builder, tile, value)
        rows = len(sums) // width
        for y in range(rows + height - 1):
            for c in range(width):
                vector = _load(builder, base, _offset(builder, index, c * lanes), lanes)
                for r in range(max(0, y - height + 1), min(rows, y + 1)):
                    i = r * width + c
                    sums[i] = _fma(builder, kernel[y - r], vector, sums[i])
            index = builder.add(index, stride)
        return _pack(builder, tile, sums)

    ints = [types.int64] * 6
    return tile(tile, *ints, taps, cols), emit


@intrinsic(prefer_literal=True)
def row_of_taps(typingctx, tile, base, index, stride, first, last, zeros, weights, weight_index, taps, step, cols):
    """One row of a depthwise kernel, for a tile of pixels x cols vectors of channels; pixels are ``stride`` apart.

    ``tile[p, c] += sum over t of weights[t, c] * (pixel p * step + t, vector c)``; every input vector is loaded once.
    Pixels from ``first`` to before ``last`` exist; the others are read at ``zeros``.
    """

    def emit(context, builder, signature, arguments):
        value, base, index, stride, first, last, zeros, weights, weight_index = arguments[:9]
        width, hop, vectors, lanes = taps.literal_value, step.literal_value, cols.literal_value, tile.dtype.lanes
        sums = _unpack(builder, tile, value)
        pixels = len(sums) // vectors
        kernel = []
        for _ in range(width):
            kernel.append(
                [_load(builder, weights, _offset(builder, weight_index, c * lanes), lanes) for c in range(vectors)]
            )
            weight_index = builder.add(weight_index, stride)
        for x in range((pixels - 1) * hop + width):
            here = ir.Constant(I64, x)
            exists = builder.and_(builder.icmp_signed("<=", first, here), builder.icmp_signed("<", here, last))
            at = builder.select(exists, index, zeros)
            for c in range(vectors):
                vector = _load(builder, base, _offset(builder, at, c * lanes), lanes)
                for p in range(pixels):
                    if 0 <= x - p * hop < width:
                        i = p * vectors + c
                        sums[i] = _fma(builder, kernel[x - p * hop][c], vector, sums[i])
            index = builder.add(index, stride)
        return _pack(builder, tile, sums)

    ints = [types.int64] * 8
    return tile(tile, *ints, taps, step, cols), emit


# --- lanes ----------------------------------------------------------------------------------------------------------


@intrinsic
def lanes_between(typingctx, first, last, vector, other):
    """Lanes ``first`` to ``last`` (not included) of ``vector``, the rest of ``other``; both may lie outside of it."""

    def emit(context, builder, signature, arguments):
        first, last, value, rest = arguments
        lanes = ir.Constant(ir.VectorType(I32, vector.lanes), list(range(vector.lanes)))
        low, high = (_splat(builder, builder.trunc(limit, I32), vector.lanes) for limit in (first, last))
        inside = builder.and_(builder.icmp_signed("<=", low, lanes), builder.icmp_signed("<", lanes, high))
        return builder.select(inside, value, rest)

    return vector(types.int64, types.int64, vector, vector), emit


def _pick(start):
    """Every second lane of two adjacent vectors, as one vector."""

    @intrinsic
    def function(typingctx, low, high):
        def emit(context, builder, signature, arguments):
            picked = ir.Constant(ir.VectorType(I32, low.lanes), list(range(start, 2 * low.lanes, 2)))
            return builder.shuffle_vector(*arguments, picked)

        return low(low, high), emit

    return function


even_lanes = _pick(0)
odd_lanes = _pick(1)


def _reduction(operation):
    """All lanes combined, halves first: the result depends on the order, which is always this one."""

    @intrinsic
    def function(typingctx, vector):
        def emit(context, builder, signature, arguments):
            (value,) = arguments
            while (lanes := value.type.count) > 1:
                halves = [
                    builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, lanes // 2), list(half)))
                    for half in (range(lanes // 2), range(lanes // 2, lanes))
                ]
                value = operation(builder, *halves)
            return builder.extract_element(value, ir.Constant(I32, 0))

        return types.float32(vector), emit

    return function


sum_lanes = _reduction(lambda b, x, y: b.fadd(x, y))
max_lanes = _reduction(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
