"""A whole program for a batch of images in one call."""

from .abi import COLUMNS, Op
from .activation import activate
from .block import planar_block
from .cbam import channel_attention, planar_pool, pool, scale, spatial_attention, to_channels_last
from .common import kernel
from .dense import dense, image_convolution
from .depthwise import depthwise
from .elementwise import add_maps, copy
from .pointwise import pointwise
from .pool import embedding, means, planar_means
from .pool3x3 import max_pool, mean_pool
from .simd import load_int, load_ints
from .squeeze import squeeze_excite
from .stem import pad_image, stem


@kernel
def run_program(images, image_size, count, output, output_size, weights, tables, steps, step_count, arena):
    """Runs the steps for each of ``count`` images. All arguments are addresses and sizes, in elements, as int64."""
    for n in range(count):
        image = images + 4 * n * image_size
        result = output + 4 * n * output_size
        for i in range(step_count):
            at = i * COLUMNS
            op = load_int(steps, at)
            at += 1
            if op == Op.PAD_IMAGE:
                pad_image(image, arena, *load_ints(steps, at, 4))
            elif op == Op.STEM:
                stem(arena, weights, *load_ints(steps, at, 8))
            elif op == Op.PLANAR_BLOCK:
                planar_block(arena, weights, tables, *load_ints(steps, at, 23))
            elif op == Op.PLANAR_MEANS:
                planar_means(arena, *load_ints(steps, at, 5))
            elif op == Op.PLANAR_POOL:
                planar_pool(arena, *load_ints(steps, at, 7))
            elif op == Op.TO_CHANNELS_LAST:
                to_channels_last(arena, *load_ints(steps, at, 8))
            elif op == Op.POINTWISE:
                pointwise(arena, weights, tables, *load_ints(steps, at, 11))
            elif op == Op.DEPTHWISE:
                depthwise(arena, weights, *load_ints(steps, at, 13))
            elif op == Op.MEANS:
                means(arena, *load_ints(steps, at, 5))
            elif op == Op.POOL:
                pool(arena, weights, *load_ints(steps, at, 8))
            elif op == Op.SCALE:
                scale(arena, *load_ints(steps, at, 6))
            elif op == Op.CHANNEL_ATTENTION:
                channel_attention(arena, weights, tables, *load_ints(steps, at, 10))
            elif op == Op.SPATIAL_ATTENTION:
                spatial_attention(arena, weights, *load_ints(steps, at, 5))
            elif op == Op.EMBEDDING:
                embedding(arena, result, *load_ints(steps, at, 8))
            elif op == Op.IMAGE_CONVOLUTION:
                image_convolution(arena, weights, *load_ints(steps, at, 12))
            elif op == Op.COPY:
                copy(arena, tables, *load_ints(steps, at, 8))
            elif op == Op.ADD_MAPS:
                add_maps(arena, *load_ints(steps, at, 5))
            elif op == Op.ACTIVATE:
                activate(arena, *load_ints(steps, at, 3))
            elif op == Op.MAX_POOL:
                max_pool(arena, *load_ints(steps, at, 7))
            elif op == Op.MEAN_POOL:
                mean_pool(arena, *load_ints(steps, at, 7))
            elif op == Op.DENSE:
                dense(arena, weights, *load_ints(steps, at, 12))
            elif op == Op.SQUEEZE_EXCITE:
                squeeze_excite(arena, weights, tables, *load_ints(steps, at, 12))
