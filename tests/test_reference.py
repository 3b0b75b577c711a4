"""Each operator of the NumPy reference against PyTorch's in its docstring, and the networks against torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import given, random_params, st

from alnumpy import arrays, reference
from alnumpy.layers import (
    ACTIVATIONS,
    CBAM_LAYOUTS,
    GATES,
    IMAGE,
    Add,
    Cbam,
    Concat,
    Conv,
    Layer,
    Mean,
    Pool,
    Shuffle,
    Slice,
    SqueezeExcite,
)
from alnumpy.networks import SPECS

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

from torch_network import from_arrays, module  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """One thread each: torch's threads would wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


DTYPES = st.sampled_from([np.float32, np.float64])


def assert_same(ours, theirs):
    """Checks for NaN and infinities at the same positions, and others equal to within rounding of the largest value."""
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite])
    assert np.isfinite(ours[finite]).all()
    scale = np.abs(theirs[finite]).max(initial=1e-30)
    tolerance = 2e-6 if theirs.dtype == np.float32 else 1e-14
    np.testing.assert_allclose(ours[finite] / scale, theirs[finite] / scale, rtol=0, atol=tolerance)


@st.composite
def pictures(draw, channels=None, least=1, specials=True):
    """(N, C, H, W) with batch 1 to 4, odd and even sides, and sometimes a NaN or an infinity somewhere."""
    n, c = draw(st.integers(1, 4)), channels or draw(st.integers(1, 12))
    h, w = draw(st.integers(least, 13)), draw(st.integers(least, 13))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.normal(0, 3, (n, c, h, w)).astype(draw(DTYPES))
    for value in draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), max_size=2)) if specials else ():
        x.flat[draw(st.integers(0, x.size - 1))] = value
    return x


def tensor(array):
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array))


@given(st.data())
def test_conv2d(data):
    groups = data.draw(st.sampled_from([1, 2, 3, 8]))
    c = groups * data.draw(st.integers(1, 4))
    depthwise = data.draw(st.booleans())
    x = data.draw(pictures(groups if depthwise else c))
    o = groups * (1 if depthwise else data.draw(st.integers(1, 4)))
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride, padding = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3))
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(o, x.shape[1] // groups, *kernel)).astype(x.dtype)
    bias = rng.normal(size=o).astype(x.dtype) if data.draw(st.booleans()) else None
    if x.shape[2] + 2 * padding < kernel[0] or x.shape[3] + 2 * padding < kernel[1]:
        with pytest.raises(ValueError, match="smaller than the kernel"):
            reference.conv2d(x, weight, bias, stride, padding, groups)
        return
    with np.errstate(invalid="ignore"):
        ours = reference.conv2d(x, weight, bias, stride, padding, groups)
    assert_same(ours, F.conv2d(tensor(x), tensor(weight), tensor(bias), stride, padding, 1, groups))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_conv2d_on_maps_smaller_than_the_kernel(size, stride):
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(2, 6, size, size)), rng.normal(size=(6, 1, 3, 3))
    ours = reference.conv2d(x, weight, None, stride, 1, groups=6)
    assert_same(ours, F.conv2d(tensor(x), tensor(weight), None, stride, 1, groups=6))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("o", "k", "p"), [(2, 3, 5), (7, 960, 33), (129, 300, 65), (1280, 320, 1), (5, 16, 70001)])
def test_a_product_in_pieces_is_the_product(o, k, p, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    kernel, columns = (rng.normal(size=shape).astype(dtype) for shape in ((2, o, k), (3, 2, k, p)))
    whole = kernel @ columns
    for most in (arrays.ONE_THREAD, 1000):
        monkeypatch.setattr(arrays, "ONE_THREAD", most)
        assert_same(arrays.grouped_product(kernel, columns), torch.from_numpy(whole))


def test_conv2d_refuses_groups_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit 2 groups"):
        reference.conv2d(np.zeros((1, 4, 5, 5)), np.zeros((4, 4, 1, 1)), groups=2)
    with pytest.raises(ValueError, match="do not fit 2 groups"):
        reference.conv2d(np.zeros((1, 4, 5, 5)), np.zeros((3, 2, 1, 1)), groups=2)


@given(pictures(), st.data())
def test_batch_norm(x, data):
    rng = np.random.default_rng(2)
    c = x.shape[1]
    weight, bias, mean, var = (a.astype(x.dtype) for a in (*rng.normal(size=(3, c)), rng.uniform(0.1, 3, c)))
    eps = data.draw(st.sampled_from([1e-5, 1e-3]))
    with np.errstate(invalid="ignore"):
        ours = reference.batch_norm(x, weight, bias, mean, var, eps)
    theirs = F.batch_norm(tensor(x), tensor(mean), tensor(var), tensor(weight), tensor(bias), False, 0, eps)
    assert_same(ours, theirs)


@given(pictures())
def test_activations(x):
    assert_same(reference.relu(x), F.relu(tensor(x)))
    assert_same(reference.relu6(x), F.relu6(tensor(x)))
    with np.errstate(invalid="ignore"):
        for name in ("sigmoid", "silu", "hardsigmoid", "hardswish"):
            theirs = getattr(torch, name, None) or getattr(F, name)
            assert_same(getattr(reference, name)(x), theirs(tensor(x)))


def test_every_activation_that_a_layer_may_have_is_defined():
    assert set(reference.ACTIVATIONS) == {*ACTIVATIONS, *GATES}


def test_sigmoid_at_the_ends_of_the_range():
    x = np.array([-1e4, -104, -88, 0, 88, 1e4], np.float32)
    np.testing.assert_allclose(reference.sigmoid(x), torch.sigmoid(tensor(x)).numpy(), atol=1e-30, rtol=1e-6)


@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_channel_shuffle(groups, per_group, data):
    x = data.draw(pictures(groups * per_group))
    assert_same(reference.channel_shuffle(x, groups), torch.channel_shuffle(tensor(x), groups))


@given(pictures(), st.one_of(st.integers(1, 9), st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_adaptive_pools(x, output_size):
    with np.errstate(invalid="ignore"):
        assert_same(reference.adaptive_avg_pool2d(x, output_size), F.adaptive_avg_pool2d(tensor(x), output_size))


@given(pictures(), st.integers(1, 3), st.integers(1, 3))
def test_pools(x, kernel, stride):
    padding = kernel // 2
    if min(x.shape[2:]) + 2 * padding < kernel:
        return
    with np.errstate(invalid="ignore"):
        average = reference.avg_pool2d(x, kernel, stride, padding)
    assert_same(average, F.avg_pool2d(tensor(x), kernel, stride, padding))
    assert_same(reference.max_pool2d(x, kernel, stride, padding), F.max_pool2d(tensor(x), kernel, stride, padding))


@given(pictures(), *[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2, st.sampled_from([0, -np.inf]))
def test_pad(x, rows, columns, value):
    assert_same(arrays.pad(x, rows, columns, value), F.pad(tensor(x), (*columns, *rows), value=value))


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 20), st.booleans(), DTYPES)
def test_linear(n, c, o, with_bias, dtype):
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(n, c)).astype(dtype), rng.normal(size=(o, c)).astype(dtype)
    bias = rng.normal(size=o).astype(dtype) if with_bias else None
    assert_same(reference.linear(x, weight, bias), F.linear(tensor(x), tensor(weight), tensor(bias)))


def arrays_of(layer, dtype, seed=0):
    """Random arrays of one layer, under the network's names and as the state of its torch module."""
    rng = np.random.default_rng(seed)
    found = {name: rng.normal(size=shape).astype(dtype) for name, shape in layer.shapes().items()}
    found |= {name: np.abs(array) + dtype(0.1) for name, array in found.items() if name.endswith("running_var")}
    return {f"{layer.name}.{name}": array for name, array in found.items()}, {k: tensor(v) for k, v in found.items()}


X = (IMAGE,)
LAYERS = [
    Conv("stem", X, 12, 6, 3, 2, activation="relu6"),
    Conv("same", X, 12, 6, 5, 2, padding="same", activation="hardswish"),
    Conv("same at stride 1", X, 6, 6, 3, 1, 6, padding="same", activation="silu", eps=1e-3),
    Conv("biased", X, 9, 6, groups=3, bias=True),
    Conv("plain", X, 4, 6, 7, bias=True, batch_norm=False, activation="relu"),
    Shuffle("shuffle", X, 6, 3),
    Slice("half", X, 3, 3),
    Slice("odd", X, 3, 1, 2),
    Add("add", (IMAGE, IMAGE), 6),
    Add("add, relu", (IMAGE, IMAGE), 6, "relu"),
    Concat("concat", (IMAGE, IMAGE), 12),
    Concat("concat, relu", (IMAGE, IMAGE), 12, "relu"),
    Pool("max", X, 6, "max"),
    Pool("mean", X, 6, "mean"),
    Mean("pool", X, 6),
    SqueezeExcite("se", X, 6, 2, "silu", "sigmoid"),
    SqueezeExcite("se of mobilenet-v3", X, 6, 3, "relu", "hardsigmoid"),
    *(Cbam(f"cbam {name}", X, 6, 2, layout, 1e-3) for name, layout in CBAM_LAYOUTS.items()),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
@given(data=st.data())
def test_layer(layer, data):
    inputs = [data.draw(pictures(6))]
    if len(layer.inputs) == 2:
        inputs.append(np.random.default_rng(1).normal(size=inputs[0].shape).astype(inputs[0].dtype))
    copies = [x.copy() for x in inputs]
    params, state = arrays_of(layer, inputs[0].dtype.type)
    twin = module(layer).to(tensor(inputs[0]).dtype).eval()
    twin.load_state_dict(state, strict=False)
    with np.errstate(invalid="ignore"), torch.inference_mode():
        ours, theirs = reference.compute(layer, params, *inputs), twin(*map(tensor, inputs))
    assert_same(ours, theirs)
    for x, copy in zip(inputs, copies, strict=True):  # another layer may read them as well
        np.testing.assert_array_equal(x, copy)


def test_an_unknown_kind_of_layer_is_refused():
    with pytest.raises(TypeError, match="layer is not a layer"):
        reference.compute(Layer("x", X, 3), {}, np.zeros((1, 3, 2, 2)))


def test_same_padding_is_torchs_at_stride_1():
    x, weight = np.random.default_rng(1).normal(size=(1, 6, 7, 10)), np.random.default_rng(2).normal(size=(6, 1, 5, 5))
    layer = Conv("c", X, 6, 6, 5, groups=6, batch_norm=False, padding="same")
    ours = reference.compute(layer, {"c.conv.weight": weight}, x)
    assert_same(ours, F.conv2d(tensor(x), tensor(weight), padding="same", groups=6))


def relative_error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


ALNETS = [name for name in SPECS if "lnet" in name]
VARIANTS = {
    "shufflenet-v1, inverse shuffle": replace(SPECS["shufflenet-v1"], shuffle="inverse"),
    "shufflenet-v1, plain stem": replace(SPECS["shufflenet-v1"], stem_plain=True, bias=True, pooled_first=False),
    "shufflenet-v2, even and odd": replace(SPECS["shufflenet-v2"], split="even-odd"),
    "mobilenet-v1, same": replace(SPECS["mobilenet-v1"], padding="same", bn_eps=1e-3),
    "mobilenet-v3-small, hidden": replace(SPECS["mobilenet-v3-small"], hidden=1024, padding="same"),
    "mobilenet-v3-large, hidden": replace(SPECS["mobilenet-v3-large"], hidden=1280),
}


def check_parity(spec, sizes):
    """NumPy's embedding against torch's with the same arrays."""
    params = random_params(spec)
    model = from_arrays(spec, params)
    for size in sizes:
        x = np.random.default_rng(5).normal(size=(2 if max(size) < 64 else 1, 3, *size)).astype(np.float32)
        with torch.inference_mode():
            theirs = model(tensor(x)).numpy()
        ours = reference.forward(spec, params, x)
        assert ours.dtype == np.float32
        assert theirs.std() > 0.01  # zeros are not compared
        assert relative_error(ours, theirs) <= 1e-5, size


SIZES = [(1, 1), (3, 7), (28, 28), (32, 32), (33, 47), (64, 64), (97, 97), (128, 128), (224, 224)]


@pytest.mark.parametrize("name", SPECS)
def test_whole_network(name):
    heavy = "-paper" in name or "-stem" in name
    check_parity(SPECS[name], SIZES[:5] if heavy else SIZES)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_networks(name):
    check_parity(VARIANTS[name], [(32, 32), (33, 47)])


def test_whole_network_in_each_cbam_layout(small_spec):
    params = random_params(small_spec)
    x = np.random.default_rng(6).normal(size=(4, 3, 17, 11)).astype(np.float32)
    with torch.inference_mode():
        theirs = from_arrays(small_spec, params)(tensor(x)).numpy()
    assert relative_error(reference.forward(small_spec, params, x), theirs) <= 1e-5


@pytest.mark.parametrize("name", [name for name in SPECS if "-lite" not in name and "-stem" not in name])
def test_whole_network_in_float64(name):
    """The gains make float32 chaotic, so that every layer has an effect on the embedding."""
    spec, x = SPECS[name], np.random.default_rng(7).normal(size=(1, 3, 33, 47))
    params = {name: array.astype(np.float64) for name, array in random_params(spec, most=1.8).items()}
    with torch.inference_mode():
        model = from_arrays(spec, params).double()
        model.load_state_dict({name: tensor(array) for name, array in params.items()}, strict=False)
        theirs = model(tensor(x)).numpy()
    assert relative_error(reference.forward(spec, params, x), theirs) <= (1e-13 if name in ALNETS else 1e-10)


def test_a_nan_reaches_the_embedding():
    spec = SPECS["alnet"]
    x = np.zeros((1, 3, 28, 28), np.float32)
    x[0, 1, 5, 5] = np.nan
    with np.errstate(invalid="ignore"):
        assert np.isnan(reference.forward(spec, random_params(spec), x)).all()
