"""Every count of the paper that the networks' tables must reproduce."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from conftest import given, st

from alnumpy.counts import alblock_ratios, bottleneck_cost, costs, flops, flops_eq5, parameters, total
from alnumpy.layers import IMAGE, Conv
from alnumpy.networks import SPECS, ALNet


def millions(layers, size, classes):
    """FLOPs by the authors' rule, with a linear classifier."""
    return (total(layers, (size, size)).flops + classes * (2 * layers[-1].channels - 1)) / 1e6


def test_params_by_part():
    parts = Counter()
    for layer in ALNet().layers():
        parts["cbam" if layer.name.endswith("cbam") else "conv"] += parameters(layer)
    assert parts == {"conv": 519_648 + 13_584, "cbam": 223_682}  # convolutions with their batch norms
    assert parameters(ALNet().layers()[-2]) == 204_898  # the CBAM of 1280 channels


@pytest.mark.parametrize(
    ("name", "with_head"), [("alnet", 769_724), ("lnet-cbam", 769_724), ("lnet-cs", 546_042), ("lnet", 546_042)]
)
def test_params_of_the_ablations(name, with_head):
    spec = SPECS[name]
    assert total(spec.layers()).parameters + 10 * (spec.embedding + 1) == with_head  # Table 7: 0.77M and 0.55M


@pytest.mark.parametrize(
    ("name", "size", "exact"),
    [
        ("alnet-stem24", 24, 4_557_924),  # Table 2
        ("alnet", 32, 6_641_760),  # Table 3
        ("alnet-stem128", 128, 212_784_744),  # Table 4
        ("alnet-stem160", 160, 404_313_376),  # Tables 5 and 6
    ],
)
def test_flops_of_alnet_are_the_papers_with_a_stem_as_wide_as_the_picture(name, size, exact):
    assert SPECS[name].stem == size
    assert total(SPECS[name].layers(), (size, size)).flops == exact


@pytest.mark.parametrize(
    ("spec", "size", "classes", "expected"),
    [
        (SPECS["mobilenet-v1-paper"], 28, 10, 44.042),
        (SPECS["mobilenet-v1-paper"], 32, 10, 48.238),
        (SPECS["mobilenet-v1-paper"], 128, 397, 772.271),
        (SPECS["mobilenet-v1-paper"], 160, 17, 1205.437),
        (SPECS["mobilenet-v1-paper"], 160, 12, 1205.427),
        (SPECS["shufflenet-v1-paper"], 24, 10, 26.040),
        (SPECS["shufflenet-v1-paper"], 28, 10, 37.446),
        (SPECS["shufflenet-v1-paper"], 32, 10, 46.278),
        (SPECS["shufflenet-v1-paper"], 128, 397, 740.881),
        (SPECS["shufflenet-v1-paper"], 160, 17, 1156.469),
        (SPECS["shufflenet-v1-paper"], 160, 12, 1156.459),
        (replace(SPECS["shufflenet-v2-paper"], stem=28), 28, 10, 39.291),
        (replace(SPECS["mobilenet-v2"], stem=24), 28, 10, 6.100),
        (SPECS["mobilenet-v2"], 28, 10, 6.194),
        (SPECS["mobilenet-v2"], 32, 10, 6.685),
        (replace(SPECS["mobilenet-v2"], stem=128), 128, 397, 131.147),
        (SPECS["mobilenet-v2"], 128, 397, 107.554),
        (replace(SPECS["mobilenet-v2"], stem=160), 160, 17, 215.661),
        (replace(SPECS["mobilenet-v2"], stem=160), 160, 12, 215.648),
    ],
)  # fmt: skip
def test_flops_by_the_authors_rule(spec, size, classes, expected):
    assert millions(spec.layers(), size, classes) == pytest.approx(expected, abs=0.0006)


@pytest.mark.parametrize(
    ("spec", "size", "classes", "expected"),
    [
        (SPECS["shufflenet-v2-paper"], 32, 10, 47.248),
        (replace(SPECS["shufflenet-v2-paper"], stem=128), 128, 397, 1122.932),
        (SPECS["shufflenet-v2-paper"], 128, 397, 756.455),
        (replace(SPECS["shufflenet-v2-paper"], stem=160), 160, 17, 2049.078),
        (replace(SPECS["shufflenet-v2-paper"], stem=160), 160, 12, 2049.068),
    ],
)  # fmt: skip
def test_flops_of_shufflenet_v2_whose_pool_is_a_function_and_not_counted(spec, size, classes, expected):
    assert millions(spec.layers()[:-1], size, classes) == pytest.approx(expected, abs=0.0006)


@pytest.mark.parametrize(
    ("size", "classes", "expected"),
    [(24, 10, 1.088), (28, 10, 1.188), (32, 10, 1.271), (128, 397, 11.237), (160, 17, 15.649), (160, 12, 15.637)],
)
def test_flops_of_efficientnet_whose_convolutions_were_not_counted(size, classes, expected):
    """The authors' counter ignored subclasses of Conv2d: all convolutions but those of squeeze-excite."""
    layers = SPECS["efficientnet-b0"].layers()
    left_out = sum(cost.multiply_adds for cost in costs(layers, (size, size)) if "conv.weight" in cost.layer.shapes())
    assert millions(layers, size, classes) - left_out / 1e6 == pytest.approx(expected, abs=0.0006)


def test_flops_of_one_convolution_by_all_rules():
    layer = Conv("c", (IMAGE,), 16, 8, 3, 2, 4, bias=True, activation="relu")
    assert layer.multiply_adds((9, 11)) == 16 * 5 * 6 * 2 * 9
    assert flops(layer, (9, 11)) == 16 * 5 * 6 * (2 * 9 + 1 + 4)
    assert flops_eq5(layer, (9, 11)) == 2 * 16 * 5 * 6 * (2 * 9 + 1)


def test_equation_5_sums_to_the_network():
    layers = SPECS["lnet"].layers()
    conv = sum(
        2 * cost.size[0] * cost.size[1] * (layer.cin // layer.groups * layer.kernel**2 + 1) * layer.channels
        for layer, cost in zip(layers[:-1], costs(layers, (32, 32)), strict=False)
    )
    assert total(layers, (32, 32)).flops_eq5 == conv


@given(
    st.sampled_from([8, 16, 24, 64]),
    st.sampled_from([8, 40, 320]),
    st.integers(1, 6),
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.sampled_from([1, 2]),
)
def test_ratios_of_equations_1_and_2_follow_from_table_1(c1, c2, t, size1, stride):
    size2 = tuple((side - 1) // stride + 1 for side in size1)
    params, cost = bottleneck_cost(c1, c2, t, size1, size2, groups=8)
    params1, cost1 = bottleneck_cost(c1, c2, t, size1, size2)
    assert params1 == t * c1 * (c1 + c2 + 9)  # Table 1, sum for MobileNetV2's bottleneck
    assert (params / params1, cost / cost1) == pytest.approx(alblock_ratios(c1, c2, size1, size2))


def test_table_1_counts_the_blocks_of_the_network():
    spec, cin, size = ALNet(), 32, (32, 32)
    found = {cost.layer.name: cost for cost in costs(spec.layers(), size)}
    for i, (t, c, s) in enumerate(spec.blocks, 1):
        after = tuple((side - 1) // s + 1 for side in size)
        convs = [found[f"block{i}.{part}"] for part in ("expand", "depthwise", "project")]
        bn = sum(2 * cost.layer.channels for cost in convs)
        expected = sum(cost.parameters for cost in convs) - bn, sum(cost.multiply_adds for cost in convs)
        assert expected == bottleneck_cost(cin, c, t, size, after, 8)
        cin, size = c, after


def test_sizes_at_128():
    sizes = {cost.layer.name: cost.size for cost in costs(ALNet().layers(), (128, 128))}
    assert sizes["stem"] == (128, 128)
    assert [sizes[f"block{i}.project"][0] for i in range(1, 8)] == [128, 64, 32, 16, 16, 8, 8]
    assert sizes["last"] == (8, 8)
    assert sizes["pool"] == (1, 1)
