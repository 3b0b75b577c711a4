"""Every count of the paper that a layer table must reproduce."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from conftest import given, st

from alnumpy.errors import SpecError
from alnumpy.spec import (
    SPECS,
    Block,
    Conv,
    Spec,
    alblock_ratios,
    bottleneck_cost,
    count_params,
    layer_flops,
    layers,
    output_size,
    parameters,
    total_flops,
    total_params,
)


def test_params_by_part():
    parts = Counter()
    for layer in layers(Spec()):
        parts.update(count_params(layer))
    assert parts == {"conv": 519_648, "bn": 13_584, "cbam": 223_682}
    assert sum(count_params(layers(Spec())[-1]).values()) == 204_898  # the CBAM of 1280 channels


def test_total_params_of_alnet():
    assert total_params(Spec()) == 756_914
    assert total_params(Spec(), classes=10) == 769_724  # Tables 5 to 7: 0.77M


@pytest.mark.parametrize(
    ("name", "with_head"), [("alnet", 769_724), ("lnet-cbam", 769_724), ("lnet-cs", 546_042), ("lnet", 546_042)]
)
def test_total_params_of_the_ablations(name, with_head):
    assert total_params(SPECS[name], classes=10) == with_head  # Table 7: 0.77M and 0.55M


def test_flops_at_32_are_those_of_table_3():
    authors, _ = total_flops(Spec(), (32, 32))
    assert authors == 6_641_760


def test_flops_by_both_rules_for_one_convolution():
    layer = Conv("c", 8, 16, 3, 2, 4, True, "relu")
    assert layer_flops(layer, (9, 11)) == 16 * 5 * 6 * (2 * 9 + 1 + 4)


def test_equation_5_sums_to_the_network():
    conv = sum(
        2 * h * w * (layer.cin // layer.groups * layer.kernel**2 + 1) * layer.cout
        for layer, (h, w) in zip(layers(SPECS["lnet"]), conv_sizes(SPECS["lnet"], (32, 32)), strict=True)
        if isinstance(layer, Conv)
    )
    assert total_flops(SPECS["lnet"], (32, 32))[1] == conv


def conv_sizes(spec, size):
    for layer in layers(spec):
        size = output_size(layer, size)
        yield size


@given(
    st.sampled_from([8, 16, 24, 64]),
    st.sampled_from([8, 40, 320]),
    st.integers(1, 6),
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.sampled_from([1, 2]),
)
def test_ratios_of_equations_1_and_2_follow_from_table_1(c1, c2, t, size1, stride):
    size2 = tuple((side - 1) // stride + 1 for side in size1)
    params, flops = bottleneck_cost(c1, c2, t, size1, size2, groups=8)
    params1, flops1 = bottleneck_cost(c1, c2, t, size1, size2)
    assert params1 == t * c1 * (c1 + c2 + 9)  # Table 1, sum for MobileNetV2's bottleneck
    assert (params / params1, flops / flops1) == pytest.approx(alblock_ratios(c1, c2, size1, size2))


def test_table_1_counts_the_blocks_of_the_spec():
    spec, cin, size = Spec(), 32, (32, 32)
    by_name = {layer.name: layer for layer in layers(spec)}
    for i, (t, c, s) in enumerate(spec.blocks, 1):
        after = tuple((side - 1) // s + 1 for side in size)
        convs = [by_name[f"block{i}.{part}"] for part in ("expand", "depthwise", "project")]
        assert sum(count_params(conv)["conv"] for conv in convs) == bottleneck_cost(cin, c, t, size, after, 8)[0]
        cin, size = c, after


def test_shapes_at_128():
    sizes = {layer.name: size for layer, size in zip(layers(Spec()), conv_sizes(Spec(), (128, 128)), strict=True)}
    assert sizes["stem"] == (128, 128)
    assert [sizes[f"block{i}.project"][0] for i in range(1, 8)] == [128, 64, 32, 16, 16, 8, 8]
    assert sizes["last"] == (8, 8)


def test_parameter_shapes():
    shapes = parameters(Spec())
    assert shapes["stem.conv.weight"] == (32, 3, 3, 3)
    assert shapes["stem.conv.bias"] == (32,)
    assert shapes["block2.expand.conv.weight"] == (96, 2, 1, 1)
    assert shapes["block2.depthwise.conv.weight"] == (96, 1, 3, 3)
    assert shapes["block2.project.conv.weight"] == (24, 12, 1, 1)
    assert shapes["block1.cbam.fc1.weight"] == (1, 16)
    assert shapes["last.cbam.fc2.weight"] == (1280, 80)
    biased = parameters(replace(Spec(), cbam="max-mean-bias-bn"))
    assert biased["last.cbam.fc1.bias"] == (80,)
    assert biased["last.cbam.bn.running_var"] == (1,)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_json_round_trip(spec):
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": 0}, "stem must be"),
        ({"stem": True}, "stem must be"),
        ({"embedding": 10**9}, "embedding must be"),
        ({"blocks": ((300, 64, 1),)}, "t\\*c must be"),
        ({"blocks": ((1, 12, 1),)}, "not divisible into 8 groups"),
        ({"blocks": ((1, 16),)}, "blocks must be"),
        ({"blocks": 3}, "blocks must be"),
        ({"blocks": ((1, 16, 1),) * 65}, "at most 64"),
        ({"blocks": (("1", 16, 1),)}, "block1 t must be"),
        ({"cbam": "mean"}, "cbam must be"),
        ({"bn_eps": 0.0}, "bn_eps must be"),
        ({"bn_eps": float("nan")}, "bn_eps must be"),
        ({"shuffle": 1}, "shuffle must be"),
        ({"name": ""}, "name must be"),
        ({"unknown": 1}, "unknown fields: unknown"),
    ],
)
def test_absurd_specs_are_refused(change, message):
    with pytest.raises(SpecError, match=message):
        Spec.from_dict(Spec().to_dict() | change)


def test_blocks_are_rows():
    assert Spec(blocks=[[1, 16, 1]]).blocks == (Block(1, 16, 1),)
