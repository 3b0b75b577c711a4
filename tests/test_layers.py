"""Layers as data: which lists are refused, the order of evaluation, and the size of each layer's output."""

import sys

import pytest

from alnumpy.errors import SpecError
from alnumpy.layers import CBAM_LAYOUTS, IMAGE, MAX_LAYERS, Add, Chain, Conv, Slice, evaluate, parameters


def test_evaluate_drops_values_after_their_last_reader():
    net = Chain()
    first = net.conv("first", 4)
    net.conv("second", 4)
    net.plus("sum", first)
    net.conv("third", 4)
    alive = []

    class Value:
        def __init__(self, name):
            self.name = name
            alive.append(name)

        def __del__(self):
            alive.remove(self.name)

    seen = {}

    def compute(layer, *inputs):
        held = {IMAGE} if sys.version_info < (3, 11) and layer.name != "first" else set()  # held by the call
        seen[layer.name] = [value.name for value in inputs], sorted(set(alive) - held)
        return Value(layer.name)

    last = evaluate(net.layers, Value(IMAGE), compute)
    assert last.name == "third"
    assert seen == {
        "first": ([IMAGE], [IMAGE]),
        "second": (["first"], ["first"]),  # the picture is no longer needed
        "sum": (["first", "second"], ["first", "second"]),
        "third": (["sum"], ["sum"]),
    }


def test_evaluate_gives_a_value_twice_to_a_layer_that_reads_it_twice():
    layers = [Conv("a", (IMAGE,), 3, 3), Add("b", ("a", "a"), 3)]
    assert evaluate(layers, 1, lambda layer, *inputs: sum(inputs)) == 2


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_size_follows_from_the_padding(kernel, stride, padding):
    layer = Conv("c", (IMAGE,), 8, 3, kernel, stride, padding=padding)
    for side in range(1, 20):
        (above, below), (left, right) = layer.pads((side, side + 1))
        padded = side + above + below, side + 1 + left + right
        assert layer.size((side, side + 1)) == tuple((p - kernel) // stride + 1 for p in padded)


def test_same_padding_agrees_with_tensorflow():
    layer = Conv("c", (IMAGE,), 8, 3, 5, 2, padding="same")
    assert layer.pads((224, 225)) == ((1, 2), (2, 2))
    assert Conv("c", (IMAGE,), 8, 3, 3, 2, padding="same").pads((224, 7)) == ((0, 1), (1, 1))
    assert Conv("c", (IMAGE,), 8, 3, 1, 2, padding="same").pads((5, 6)) == ((0, 0), (0, 0))  # never negative


def test_arrays_of_each_layer():
    net = Chain()
    net.conv("plain", 6, kernel=5, bias=True, batch_norm=False)
    net.depthwise("deep")
    net.squeeze_excite("se", 2, "relu", "sigmoid")
    net.cbam("att", 3, CBAM_LAYOUTS["max-mean-bias-bn"])
    net.mean("pool")
    assert parameters(net.layers) == {
        "plain.conv.weight": (6, 3, 5, 5),
        "plain.conv.bias": (6,),
        "deep.conv.weight": (6, 1, 3, 3),
        **{f"deep.bn.{field}": (6,) for field in ("weight", "bias", "running_mean", "running_var")},
        "se.fc1.weight": (2, 6),
        "se.fc1.bias": (2,),
        "se.fc2.weight": (6, 2),
        "se.fc2.bias": (6,),
        "att.fc1.weight": (3, 6),
        "att.fc1.bias": (3,),
        "att.fc2.weight": (6, 3),
        "att.fc2.bias": (6,),
        "att.spatial.weight": (1, 2, 7, 7),
        **{f"att.bn.{field}": (1,) for field in ("weight", "bias", "running_mean", "running_var")},
    }


def test_multiply_adds_by_hand():
    net = Chain()
    net.conv("stem", 8, kernel=3, stride=2)
    net.conv("grouped", 12, groups=4)
    net.squeeze_excite("se", 5, "relu", "sigmoid")
    net.cbam("att", 3, CBAM_LAYOUTS["mean-max"])
    stem, grouped, se, att = (layer.multiply_adds((9, 11)) for layer in net.layers)
    assert stem == 5 * 6 * 8 * 3 * 9
    assert grouped == 9 * 11 * 12 * 2
    assert se == 2 * 12 * 5
    assert att == 2 * 2 * 12 * 3 + 9 * 11 * 2 * 49  # the MLP runs for the mean and for the maximum


def test_channels_of_a_slice():
    channels = list(range(10))
    assert channels[Slice("s", (IMAGE,), 5, 1, 2).indices()] == [1, 3, 5, 7, 9]
    assert channels[Slice("s", (IMAGE,), 4, 3).indices()] == [3, 4, 5, 6]


def chain():
    net = Chain()
    net.conv("stem", 8, kernel=3)
    return net


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda net: net.conv("stem", 8), "two layers are called stem"),
        (lambda net: net.conv("image", 8), "two layers are called image"),
        (lambda net: net.plus("sum", "nothing"), "sum reads nothing, which is not an earlier layer"),
        (lambda net: net.conv("c", 9, groups=2), "not divisible into 2 groups"),
        (lambda net: net.conv("c", 9, groups=3), "not divisible into 3 groups"),
        (lambda net: net.shuffle("c", 3), "not divisible into 3 groups"),
        (lambda net: net.conv("c", 0), "c: channels must be a whole number from 1 to 8192, not 0"),
        (lambda net: net.conv("c", 8193), "c: channels must be"),
        (lambda net: net.conv("c", 8.0), "c: channels must be"),
        (lambda net: net.conv("c", True), "c: channels must be"),
        (lambda net: net.conv("c", 8, stride=0), "c: stride must be"),
        (lambda net: net.conv("c", 8, groups=0), "c: groups must be"),
        (lambda net: net.conv("c", 8, kernel=2), "c: kernel must be one of 1, 3, 5, 7, not 2"),
        (lambda net: net.conv("c", 8, "tanh"), "c: activation must be one of .*, not 'tanh'"),
        (lambda net: net.conv("c", 8, padding="valid"), "c: padding must be one of"),
        (lambda net: net.slice("s", 5, 4), "not what it reads"),
        (lambda net: net.slice("s", 4, 1, 3), "not what it reads"),
        (lambda net: net.slice("s", 4, -1), "s: start must be a whole number from 0"),
        (lambda net: net.pool("p", "median"), "p: kind must be one of 'max', 'mean'"),
        (lambda net: net.squeeze_excite("s", 0, "relu", "sigmoid"), "s: hidden must be"),
        (lambda net: net.squeeze_excite("s", 2, "relu", "relu"), "s: gate must be one of"),
        (lambda net: (net.conv("c", 9), net.plus("sum", "stem")), "sum.* not what it reads"),
        (lambda net: (net.conv("c", 8, stride=2), net.plus("sum", "stem")), "sum reads maps of different sizes"),
        (lambda net: (net.mean("c"), net.concat("both", "stem", "c")), "both reads maps of different sizes"),
        (lambda net: net.add(Conv("c", ("stem",), 8, 7)), "not what it reads"),
    ],
)
def test_layers_that_do_not_fit_are_refused(add, message):
    with pytest.raises(SpecError, match=message):
        add(chain())


def test_a_network_has_at_most_512_layers():
    net = chain()
    for i in range(MAX_LAYERS - 1):
        net.conv(f"c{i}", 8)
    with pytest.raises(SpecError, match="more than 512 layers"):
        net.conv("one more", 8)


def test_different_strides_are_noticed_at_any_depth():
    net = chain()
    for i in range(5):
        net.conv(f"left{i}", 8, stride=2)
    left = net.last
    net.at("stem")
    for i in range(4):
        net.conv(f"right{i}", 8, stride=2)
    with pytest.raises(SpecError, match="different sizes"):
        net.plus("sum", left)
    net.conv("right4", 8, stride=2)
    net.plus("sum", left)
