"""The networks' counts: parameters and multiply-adds, as published and in all public implementations."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod

import pytest

from alnumpy.errors import SpecError
from alnumpy.layers import CBAM_LAYOUTS, Cbam, evaluate, parameters
from alnumpy.networks import FAMILIES, SPECS, ALNet, Block, MobileNetV1, Spec, Stage

SIZES = (28, 32, 64, 128, 160, 224)
V3_SMALL_HIDDEN = replace(SPECS["mobilenet-v3-small"], hidden=1024)
V3_LARGE_HIDDEN = replace(SPECS["mobilenet-v3-large"], hidden=1280)
MEGVII = replace(SPECS["shufflenet-v2"], split="even-odd")

# Embedding, and parameters without a classifier and with one of 10 and 1000 classes.
PARAMETERS = [
    (SPECS["alnet"], 1280, 756_914, 769_724, 2_037_914),
    (SPECS["mobilenet-v1"], 1024, 3_206_976, 3_217_226, 4_231_976),
    (SPECS["mobilenet-v1-paper"], 1024, 3_212_928, 3_223_178, 4_237_928),
    (SPECS["shufflenet-v1"], 960, 904_728, 914_338, 1_865_728),
    (SPECS["shufflenet-v1-paper"], 960, 916_008, 925_618, 1_877_008),
    (SPECS["shufflenet-v2"], 1024, 1_253_604, 1_263_854, 2_278_604),
    (SPECS["shufflenet-v2-paper"], 1024, 1_260_228, 1_270_478, 2_285_228),
    (MEGVII, 1024, 1_254_760, 1_265_010, 2_279_760),
    (SPECS["mobilenet-v2"], 1280, 2_223_872, 2_236_682, 3_504_872),
    (SPECS["efficientnet-b0"], 1280, 4_007_548, 4_020_358, 5_288_548),
    (SPECS["efficientnet-lite0"], 1280, 3_371_008, 3_383_818, 4_652_008),
    (SPECS["efficientnet-lite1"], 1280, 4_135_680, 4_148_490, 5_416_680),
    (SPECS["efficientnet-lite2"], 1280, 4_811_072, 4_823_882, 6_092_072),
    (SPECS["mobilenet-v3-small"], 576, 927_008, 932_778, 1_504_008),
    (V3_SMALL_HIDDEN, 1024, 1_517_856, 1_528_106, 2_542_856),
    (SPECS["mobilenet-v3-large"], 960, 2_971_952, 2_981_562, 3_932_952),
    (V3_LARGE_HIDDEN, 1280, 4_202_032, 4_214_842, 5_483_032),
]
STATISTICS = {
    "mobilenet-v1": 21_888,
    "shufflenet-v1": 24_480,
    "shufflenet-v2": 16_180,
    "mobilenet-v2": 34_112,
    "efficientnet-b0": 42_016,
    "efficientnet-lite0": 42_016,
    "mobilenet-v3-small": 12_112,
    "mobilenet-v3-large": 24_400,
}
# Millions of multiply-adds at SIZES, to three decimals.
MULTIPLY_ADDS = [
    (SPECS["mobilenet-v1"], (10.999, 11.586, 46.344, 185.377, 289.651, 567.716)),
    (SPECS["shufflenet-v1"], (2.725, 2.786, 11.143, 44.572, 69.643, 136.501)),
    (SPECS["shufflenet-v2"], (2.877, 2.936, 11.746, 46.983, 73.410, 143.884)),
    (MEGVII, (2.895, 2.955, 11.820, 47.278, 73.873, 144.790)),
    (SPECS["mobilenet-v2"], (5.698, 6.112, 24.449, 97.794, 152.803, 299.494)),
    (SPECS["efficientnet-b0"], (8.048, 8.462, 31.967, 125.985, 196.498, 384.535)),
    (SPECS["mobilenet-v3-small"], (1.521, 1.570, 4.903, 18.234, 28.233, 54.897)),
    (SPECS["mobilenet-v3-large"], (5.615, 5.845, 18.860, 70.919, 109.963, 214.081)),
    (SPECS["efficientnet-lite0"], (7.420, 7.835, 31.339, 125.358, 195.871, 383.908)),
    (SPECS["mobilenet-v1-paper"], (42.472, 46.344, 185.377, 741.507, 1158.605)),
    (SPECS["shufflenet-v1-paper"], (33.753, 41.598, 166.392, 665.567, 1039.949)),
    (SPECS["shufflenet-v2-paper"], (37.527, 44.527, 178.110, 712.440, 1113.187)),
]


def trainable(spec):
    return sum(prod(shape) for name, shape in parameters(spec.layers()).items() if "running_" not in name)


def walk(spec, size, layers=None):
    """Each layer with the size of its input and of its output, in order."""
    steps = []

    def step(layer, before, *_):
        steps.append((layer, before, layer.size(before)))
        return steps[-1][2]

    assert evaluate(layers or spec.layers(), size, step) == (1, 1)
    return steps


def multiply_adds(spec, size):
    return sum(layer.multiply_adds(before) for layer, before, _ in walk(spec, (size, size)))


def name(value):
    return value.name if isinstance(value, Spec) else ""


@pytest.mark.parametrize(("spec", "embedding", "headless", "ten", "thousand"), PARAMETERS, ids=name)
def test_parameters(spec, embedding, headless, ten, thousand):
    assert spec.embedding == spec.layers()[-1].channels == embedding
    assert trainable(spec) == headless
    assert trainable(spec) + 10 * (embedding + 1) == ten
    assert trainable(spec) + 1000 * (embedding + 1) == thousand


@pytest.mark.parametrize("name", STATISTICS)
def test_running_statistics(name):
    shapes = parameters(SPECS[name].layers())
    assert sum(prod(shape) for key, shape in shapes.items() if "running_" in key) == STATISTICS[name]


@pytest.mark.parametrize(("spec", "millions"), MULTIPLY_ADDS, ids=name)
def test_multiply_adds(spec, millions):
    counted = [multiply_adds(spec, size) / 1e6 for size in SIZES[: len(millions)]]
    assert counted == pytest.approx(millions, abs=0.0005)


def test_multiply_adds_of_mobilenet_v3s_dense_layer():
    for spec, hidden in ("mobilenet-v3-small", V3_SMALL_HIDDEN), ("mobilenet-v3-large", V3_LARGE_HIDDEN):
        more = multiply_adds(hidden, 224) - multiply_adds(SPECS[spec], 224)
        assert more == hidden.last * hidden.hidden


def test_total_params_of_the_ablations():
    assert [trainable(SPECS[name]) for name in ("lnet-cbam", "lnet-cs", "lnet")] == [756_914, 533_232, 533_232]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_sides_are_halved_rounding_up(spec):
    for _, before, after in walk(spec, (97, 33)):
        assert after in (before, tuple(-(-side // 2) for side in before), (1, 1))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_layer_but_the_last_is_read(spec):
    *layers, _ = spec.layers()
    read = {name for layer in spec.layers() for name in layer.inputs}
    assert all(layer.name in read for layer in layers)


SIDES_AT_224 = {
    "alnet": {"stem": 224, "block1.project": 224, "block4.project": 28, "last": 14},
    "mobilenet-v1": {
        "stem": 112,
        "block2.project": 56,
        "block4.project": 28,
        "block6.project": 14,
        "block12.project": 7,
    },
    "shufflenet-v1": {"stem": 112, "stem.pool": 56, "block1.concat": 28, "block5.concat": 14, "block13.concat": 7},
    "shufflenet-v2": {"stem.pool": 56, "block4.shuffle": 28, "block12.shuffle": 14, "last": 7},
    "mobilenet-v2": {"block1.project": 112, "block3.add": 56, "block6.add": 28, "block13.add": 14, "last": 7},
    "mobilenet-v3-large": {"block1.add": 112, "block3.add": 56, "block6.add": 28, "block12.add": 14, "last": 7},
    "shufflenet-v1-paper": {"stem": 224, "block1.concat": 112},
}


@pytest.mark.parametrize(("name", "sides"), SIDES_AT_224.items())
def test_sides_at_224(name, sides):
    found = {layer.name: after for layer, _, after in walk(SPECS[name], (224, 224))}
    assert {layer: found[layer] for layer in sides} == {layer: (side, side) for layer, side in sides.items()}


@pytest.mark.parametrize(
    ("name", "residuals"),
    [("mobilenet-v2", 10), ("efficientnet-b0", 9), ("shufflenet-v1", 13), ("mobilenet-v3-large", 10)],
)
def test_residual_additions(name, residuals):
    assert sum(layer.name.endswith(".add") for layer in SPECS[name].layers()) == residuals


def test_squeezed_channels():
    def hidden(name):
        return [layer.hidden for layer in SPECS[name].layers() if layer.name.endswith(".se")]

    assert hidden("efficientnet-b0") == [8, 4, 6, 6, 10, 10, 20, 20, 20, 28, 28, 28, 48, 48, 48, 48]
    assert hidden("mobilenet-v3-small") == [8, 24, 64, 64, 32, 40, 72, 144, 144]
    assert hidden("mobilenet-v3-large") == [24, 32, 32, 120, 168, 168, 240, 240]
    assert hidden("efficientnet-lite0") == []


def test_channels_per_group_of_shufflenet_v1():
    shapes = parameters(SPECS["shufflenet-v1"].layers())
    found = {
        name: shapes[f"{name}.conv.weight"][:2] for name in ("block1.compress", "block2.compress", "block1.expand")
    }
    assert found == {"block1.compress": (60, 24), "block2.compress": (60, 80), "block1.expand": (216, 20)}
    grouped = parameters(replace(SPECS["shufflenet-v1"], first_grouped=True).layers())
    assert grouped["block1.compress.conv.weight"][:2] == (60, 8)


def test_parameter_shapes_of_alnet():
    shapes = parameters(ALNet().layers())
    assert shapes["stem.conv.weight"] == (32, 3, 3, 3)
    assert shapes["stem.conv.bias"] == (32,)
    assert shapes["block2.expand.conv.weight"] == (96, 2, 1, 1)
    assert shapes["block2.depthwise.conv.weight"] == (96, 1, 3, 3)
    assert shapes["block2.project.conv.weight"] == (24, 12, 1, 1)
    assert shapes["block1.cbam.fc1.weight"] == (1, 16)
    assert shapes["last.cbam.fc2.weight"] == (1280, 80)
    biased = parameters(ALNet(cbam="max-mean-bias-bn").layers())
    assert biased["last.cbam.fc1.bias"] == (80,)
    assert biased["last.cbam.bn.running_var"] == (1,)


def test_every_combination_of_cbam_has_a_name():
    assert len(CBAM_LAYOUTS) == len(set(CBAM_LAYOUTS.values())) == 8
    for name, layout in CBAM_LAYOUTS.items():
        found = {layer.layout for layer in ALNet(cbam=name).layers() if isinstance(layer, Cbam)}
        assert found == {layout}
        assert layout == (name.startswith("mean"), "bias" in name, "bn" in name)


@pytest.mark.parametrize("spec", [*SPECS.values(), MEGVII, V3_SMALL_HIDDEN], ids=lambda spec: spec.name)
def test_json_round_trip(spec):
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_alnet_is_written_without_a_family():
    assert ALNet().to_dict() == {
        "name": "alnet",
        "stem": 32,
        "stem_bias": True,
        "blocks": [[1, 16, 1], [6, 24, 2], [6, 32, 2], [6, 64, 2], [6, 96, 1], [6, 160, 2], [6, 320, 1]],
        "embedding": 1280,
        "groups": 8,
        "shuffle": True,
        "cbam": "mean-max",
        "reduction": 16,
        "bn_eps": 1e-5,
    }
    assert Spec.from_dict({"family": "alnet"} | ALNet().to_dict()) == ALNet()


def test_every_family_has_a_preset():
    assert {type(spec) for spec in SPECS.values()} == set(FAMILIES.values())
    assert all(spec.name == name for name, spec in SPECS.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": 0}, "stem must be"),
        ({"stem": True}, "stem must be"),
        ({"embedding": 10**9}, "embedding must be"),
        ({"blocks": ((300, 64, 1),)}, "block1.expand: channels must be"),
        ({"blocks": ((1, 12, 1),)}, "not divisible into 8 groups"),
        ({"blocks": ((1, 16),)}, "blocks must be"),
        ({"blocks": 3}, "blocks must be"),
        ({"blocks": ((1, 16, 1),) * 128}, "more than 512 layers"),
        ({"blocks": ((1, 16, 1),) * 513}, "at most 512"),
        ({"blocks": (("1", 16, 1),)}, "block1 t must be"),
        ({"blocks": ((1, 16, 0),)}, "block1 s must be"),
        ({"reduction": 0}, "reduction must be"),
        ({"groups": 0}, "groups must be"),
        ({"cbam": "mean"}, "cbam must be"),
        ({"cbam": None}, "cbam must be"),
        ({"bn_eps": 0.0}, "bn_eps must be"),
        ({"bn_eps": 1}, "bn_eps must be"),
        ({"bn_eps": float("nan")}, "bn_eps must be"),
        ({"shuffle": 1}, "shuffle must be"),
        ({"name": ""}, "name must be"),
        ({"name": "a\nb"}, "name must be"),
        ({"name": 3}, "name must be"),
        ({"unknown": 1}, "unknown fields: unknown"),
        ({"family": "mobilenet"}, "family must be one of"),
        ({"family": []}, "family must be one of"),
        ({"family": "mobilenet-v1"}, "unknown fields: activation"),
    ],
)
def test_absurd_specs_are_refused(change, message):
    with pytest.raises(SpecError, match=message):
        Spec.from_dict(ALNet().to_dict() | change)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mobilenet-v1", {"stages": [[64, 8192, 1]]}, "more than 512 layers"),
        ("mobilenet-v1", {"stages": [[64, 1]]}, r"stages must be a list of \(channels, repeats, stride\) rows"),
        ("mobilenet-v1", {"activation": "tanh"}, "activation must be one of"),
        ("mobilenet-v1", {"padding": 1}, "padding must be"),
        ("mobilenet-v2", {"blocks": [[4, 0, 16, 1, 0, "relu"]]}, "kernel must be one of"),
        ("mobilenet-v2", {"blocks": [[3, 0, 16, 1, 0, "tanh"]]}, "activation must be one of"),
        ("mobilenet-v2", {"blocks": [[3, 0, 16, 1, 0, 7]]}, "block1 activation must be a text"),
        ("mobilenet-v2", {"blocks": [[3, -1, 16, 1, 0, "relu"]]}, "block1 wide must be a whole number from 0"),
        ("mobilenet-v2", {"squeeze_gate": "tanh", "blocks": [[3, 0, 16, 1, 2, "relu"]]}, "gate must be one of"),
        ("shufflenet-v1", {"shuffle": "both"}, "shuffle must be one of"),
        ("shufflenet-v1", {"groups": 7}, "not divisible into 7 groups"),
        ("shufflenet-v1", {"stages": [[24, 1, 2]]}, "block1.expand: channels must be"),
        ("shufflenet-v1", {"stages": [[240, 1, 3]]}, "different sizes|not what it reads"),
        ("shufflenet-v2", {"split": "thirds"}, "split must be one of"),
        ("shufflenet-v2", {"stages": [[1, 1, 2]]}, "channels must be"),
        ("shufflenet-v2", {"stages": [[116, 1, 1]]}, "not what it reads"),
    ],
)  # fmt: skip
def test_absurd_fields_of_each_family_are_refused(name, change, message):
    with pytest.raises(SpecError, match=message):
        Spec.from_dict(SPECS[name].to_dict() | change)


def test_rows_are_named():
    assert ALNet(blocks=[[1, 16, 1]]).blocks == (Block(1, 16, 1),)
    assert MobileNetV1(stages=[[64, 2, 1]]).stages == (Stage(64, 2, 1),)
