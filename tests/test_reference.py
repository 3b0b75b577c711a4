"""Each operator of the NumPy reference against the PyTorch operator that it names, and the network against torch."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import given, random_params, st

from alnumpy import reference
from alnumpy.spec import SPECS, layers

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

from alnet_torch import CBAM, from_arrays  # noqa: E402

DTYPES = st.sampled_from([np.float32, np.float64])


def assert_same(ours, theirs):
    """NaN and infinities at the same positions, the rest equal to the dtype's rounding of the largest value."""
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
    stride, padding, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3)), data.draw(st.integers(1, 2))
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(o, x.shape[1] // groups, *kernel)).astype(x.dtype)
    bias = rng.normal(size=o).astype(x.dtype) if data.draw(st.booleans()) else None
    span = [dilation * (k - 1) + 1 for k in kernel]
    args = (stride, padding, dilation, groups)
    if x.shape[2] + 2 * padding < span[0] or x.shape[3] + 2 * padding < span[1]:
        with pytest.raises(ValueError, match="smaller than the kernel"):
            reference.conv2d(x, weight, bias, *args)
        return
    with np.errstate(invalid="ignore"):
        ours = reference.conv2d(x, weight, bias, *args)
    assert_same(ours, F.conv2d(tensor(x), tensor(weight), tensor(bias), *args))


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
    for most in (reference.ONE_THREAD, 1000):
        monkeypatch.setattr(reference, "ONE_THREAD", most)
        assert_same(reference._product(kernel, columns), torch.from_numpy(whole))


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
    assert_same(reference.sigmoid(x), torch.sigmoid(tensor(x)))


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
    assert_same(reference.adaptive_max_pool2d(x, output_size), F.adaptive_max_pool2d(tensor(x), output_size))


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 20), st.booleans(), DTYPES)
def test_linear(n, c, o, with_bias, dtype):
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(n, c)).astype(dtype), rng.normal(size=(o, c)).astype(dtype)
    bias = rng.normal(size=o).astype(dtype) if with_bias else None
    assert_same(reference.linear(x, weight, bias), F.linear(tensor(x), tensor(weight), tensor(bias)))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 4)])
def test_cbam_in_each_layout(small_spec, size):
    params = random_params(small_spec)
    for layer in layers(small_spec):
        if layer.name.endswith("cbam"):
            module = CBAM(layer, small_spec.bn_eps)
            state = {k.removeprefix(f"{layer.name}."): tensor(v) for k, v in params.items() if k.startswith(layer.name)}
            module.load_state_dict(state, strict=False)
            x = np.random.default_rng(4).normal(size=(3, layer.channels, *size)).astype(np.float32)
            with torch.inference_mode():
                theirs = module.eval()(tensor(x))
            assert_same(reference.cbam(x, layer, params, small_spec.bn_eps), theirs)


def relative_error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (37, 53), (64, 64), (128, 128), (160, 160), (1, 1), (3, 7)])
@pytest.mark.parametrize("name", SPECS)
def test_whole_network(name, size):
    spec = SPECS[name]
    params = random_params(spec, seed=size[0])
    x = np.random.default_rng(5).normal(size=(2, 3, *size)).astype(np.float32)
    with torch.inference_mode():
        theirs = from_arrays(spec, params)(tensor(x)).numpy()
    ours = reference.forward(spec, params, x)
    assert ours.dtype == np.float32
    assert theirs.std() > 0.01  # the random network is alive: it does not compare zeros
    assert relative_error(ours, theirs) <= 1e-5


def test_whole_network_in_each_cbam_layout(small_spec):
    params = random_params(small_spec)
    x = np.random.default_rng(6).normal(size=(4, 3, 17, 11)).astype(np.float32)
    with torch.inference_mode():
        theirs = from_arrays(small_spec, params)(tensor(x)).numpy()
    assert relative_error(reference.forward(small_spec, params, x), theirs) <= 1e-5


def test_whole_network_in_float64():
    spec, x = SPECS["alnet"], np.random.default_rng(7).normal(size=(1, 3, 33, 47))
    params = {name: array.astype(np.float64) for name, array in random_params(spec).items()}
    with torch.inference_mode():
        model = from_arrays(spec, params).double()
        model.load_state_dict({name: tensor(array) for name, array in params.items()}, strict=False)
        theirs = model(tensor(x)).numpy()
    assert relative_error(reference.forward(spec, params, x), theirs) <= 1e-13


def test_a_nan_reaches_the_embedding():
    spec = SPECS["alnet"]
    x = np.zeros((1, 3, 28, 28), np.float32)
    x[0, 1, 5, 5] = np.nan
    with np.errstate(invalid="ignore"):
        assert np.isnan(reference.forward(spec, random_params(spec), x)).all()
