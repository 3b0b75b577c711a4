"""Activations and gates, by the codes of abi.ACTIVATIONS."""

from .abi import CLAMPS, PACK
from .common import INFINITY, inline, kernel
from .simd import LANES, add, clamp, divide, fma, load, maximum, multiply, power_of_two, rint, splat, store

SILU, HARDSWISH, SIGMOID = CLAMPS, 4, 5  # other codes: HARDSIGMOID


@inline
def limits(activation):
    """The interval to which an activation clamps; activations from SILU on do not clamp, so theirs is infinite."""
    low = 0.0 if activation == 1 or activation == 2 else -INFINITY
    high = 6.0 if activation == 2 else INFINITY
    return low, high


def make_sigmoid(lanes):
    @inline
    def sigmoid(x):
        """1 / (1 + exp(-x)) of a vector: within 2 ulp, 0 if exp overflows, NaN if x is NaN.

        exp(t) = 2^n * exp(r) with n = round(t / ln 2), |r| <= ln(2) / 2; the Taylor series to r^7 is exact to 1e-8.
        """
        one = splat(1.0, lanes)
        t = clamp(multiply(x, splat(-1.0, lanes)), splat(-88.0, lanes), splat(89.0, lanes))
        n = rint(multiply(t, splat(1.4426950408889634, lanes)))
        r = fma(n, splat(-0.693359375, lanes), t)  # ln 2 in two parts, the first exact in float32 with bits to spare
        r = fma(n, splat(2.12194440054690583e-4, lanes), r)
        p = splat(1 / 5040, lanes)
        p = fma(p, r, splat(1 / 720, lanes))
        p = fma(p, r, splat(1 / 120, lanes))
        p = fma(p, r, splat(1 / 24, lanes))
        p = fma(p, r, splat(1 / 6, lanes))
        p = fma(p, r, splat(0.5, lanes))
        p = fma(p, r, one)
        p = fma(p, r, one)
        n = maximum(n, splat(-127.0, lanes))  # in this order NaN becomes -127, which can be an integer; p stays NaN
        return divide(one, add(one, multiply(p, power_of_two(n))))

    return sigmoid


def make_activated(lanes):
    sigmoid = make_sigmoid(lanes)

    @inline
    def activated(x, code):
        """The activation or gate of one vector."""
        sixth, three = splat(1 / 6, lanes), splat(3.0, lanes)
        if code == SILU:
            y = multiply(x, sigmoid(x))
        elif code == SIGMOID:
            y = sigmoid(x)
        else:
            y = multiply(clamp(add(x, three), splat(0.0, lanes), splat(6.0, lanes)), sixth)
            if code == HARDSWISH:
                y = multiply(x, y)
        return y

    return activated


sigmoid = make_sigmoid(LANES)
activated, activated_pack = make_activated(LANES), make_activated(PACK)


@kernel
def activate(arena, x, count, code):
    """Activates ``count`` floats, a multiple of PACK, in place."""
    low, high = limits(code)
    i = 0
    while i + LANES <= count:
        v = load(arena, x + i, LANES)
        v = clamp(v, splat(low, LANES), splat(high, LANES)) if code < SILU else activated(v, code)
        store(arena, x + i, v)
        i += LANES
    while i < count:
        v = load(arena, x + i, PACK)
        v = clamp(v, splat(low, PACK), splat(high, PACK)) if code < SILU else activated_pack(v, code)
        store(arena, x + i, v)
        i += PACK
