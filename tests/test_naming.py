"""The lost order of modules, found again by the names that public projects use."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import accumulate

import pytest

from alnumpy.convert import expected_modules
from alnumpy.naming import orders
from alnumpy.networks import SPECS

STAGES = {  # numbers of blocks, as the projects count them
    "mobilenet-v1": (1, 2, 2, 6, 2),
    "mobilenet-v2": (1, 2, 3, 4, 3, 3, 1),
    "efficientnet-b0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet-lite0": (1, 2, 2, 3, 3, 4, 1),
    "mobilenet-v3-small": (1, 2, 3, 2, 3),
    "mobilenet-v3-large": (1, 2, 3, 4, 2, 3),
    "shufflenet-v1": (4, 8, 4),
    "shufflenet-v2": (4, 8, 4),
}
DENSE = {"mobilenet-v3-small": 1024, "mobilenet-v3-large": 1280}


def spec_of(name):
    return replace(SPECS[name], hidden=DENSE[name]) if name in DENSE else SPECS[name]


def parts(spec):
    """For each module: its block (from 1), stage and place in the stage (from 0), role, and 1 for a batch norm."""
    modules = expected_modules(spec)
    starts = [0, *accumulate(STAGES[spec.name])]
    for module in modules:
        unit, _, role = module.name.partition(".")
        role, _, last = role.rpartition(".")
        role = f"{role}.{last}" if last in ("fc1", "fc2") else role or unit
        number = int(unit[5:]) if unit.startswith("block") else 0
        stage = max(i for i, start in enumerate(starts) if number > start) if number else 0
        wide = any(m.name.startswith(f"{unit}.expand") for m in modules)
        yield number, stage, number - 1 - starts[stage], role, int(module.kind == "bn"), wide


def timm(spec):
    ends = {"stem": ("conv_stem", "bn1"), "last": ("conv_head", "bn2"), "hidden": ("conv_head", "")}
    if spec.name in DENSE:
        last = len(STAGES[spec.name])
        ends["last"] = (f"blocks.{last}.0.conv", f"blocks.{last}.0.bn1")
    for number, stage, place, role, bn, wide in parts(spec):
        inside = {
            "expand": ("conv_pw", "bn1"),
            "depthwise": ("conv_dw", "bn2" if wide else "bn1"),
            "se.fc1": ("se.conv_reduce", ""),
            "se.fc2": ("se.conv_expand", ""),
            "project": ("conv_pwl", "bn3") if wide else ("conv_pw", "bn2"),
        }
        yield f"blocks.{stage}.{place}.{inside[role][bn]}" if number else ends[role][bn]


def lukemelas(spec):
    ends = {"stem": ("_conv_stem", "_bn0"), "last": ("_conv_head", "_bn1")}
    inside = {
        "expand": ("_expand_conv", "_bn0"),
        "depthwise": ("_depthwise_conv", "_bn1"),
        "se.fc1": ("_se_reduce", ""),
        "se.fc2": ("_se_expand", ""),
        "project": ("_project_conv", "_bn2"),
    }
    for number, _, _, role, bn, _ in parts(spec):
        yield f"_blocks.{number - 1}.{inside[role][bn]}" if number else ends[role][bn]


def torchvision(spec):
    """The parts of a block in networks of inverted residuals are numbered."""
    last, seen = sum(STAGES[spec.name]) + 1, {}
    for number, _, _, role, bn, _ in parts(spec):
        if not number:
            yield "classifier.0" if role == "hidden" else f"features.{last if role == 'last' else 0}.{bn}"
            continue
        roles = seen.setdefault(number, [])
        kind = role.split(".")[0]
        roles += [kind] if kind not in roles else []
        at = roles.index(kind)
        if spec.name == "mobilenet-v2":  # its last convolution and batch norm have no module around them
            inner = f"{at + bn}" if kind == "project" else f"{at}.{bn}"
            yield f"features.{number}.conv.{inner}"
        else:
            yield f"features.{number}.block.{at}.{role[3:] if kind == 'se' else bn}"


def by_role(ends, inside):
    def names(spec):
        for number, stage, place, role, bn, _ in parts(spec):
            name = inside[role][bn].format(s=stage, b=place, n=number - 1) if number else ends[role][bn]
            yield name

    return names


TORCHVISION_V2 = by_role(
    {"stem": ("conv1.0", "conv1.1"), "last": ("conv5.0", "conv5.1")},
    {
        "left.depthwise": ("stage{s}.{b}.branch1.0", "stage{s}.{b}.branch1.1"),
        "left.project": ("stage{s}.{b}.branch1.2", "stage{s}.{b}.branch1.3"),
        "expand": ("stage{s}.{b}.branch2.0", "stage{s}.{b}.branch2.1"),
        "depthwise": ("stage{s}.{b}.branch2.3", "stage{s}.{b}.branch2.4"),
        "project": ("stage{s}.{b}.branch2.5", "stage{s}.{b}.branch2.6"),
    },
)
MEGVII_V2 = by_role(
    {"stem": ("first_conv.0", "first_conv.1"), "last": ("conv_last.0", "conv_last.1")},
    {
        "left.depthwise": ("features.{n}.branch_proj.0", "features.{n}.branch_proj.1"),
        "left.project": ("features.{n}.branch_proj.2", "features.{n}.branch_proj.3"),
        "expand": ("features.{n}.branch_main.0", "features.{n}.branch_main.1"),
        "depthwise": ("features.{n}.branch_main.3", "features.{n}.branch_main.4"),
        "project": ("features.{n}.branch_main.5", "features.{n}.branch_main.6"),
    },
)
CV_ENDS = {
    "stem": ("features.init_block.conv.conv", "features.init_block.conv.bn"),
    "last": ("features.final_block.conv", "features.final_block.bn"),
}
CV_V2 = by_role(
    CV_ENDS,
    {
        "left.depthwise": ("features.stage{s}.unit{b}.dw_conv4", "features.stage{s}.unit{b}.dw_bn4"),
        "left.project": ("features.stage{s}.unit{b}.expand_conv5", "features.stage{s}.unit{b}.expand_bn5"),
        "expand": ("features.stage{s}.unit{b}.compress_conv1", "features.stage{s}.unit{b}.compress_bn1"),
        "depthwise": ("features.stage{s}.unit{b}.dw_conv2", "features.stage{s}.unit{b}.dw_bn2"),
        "project": ("features.stage{s}.unit{b}.expand_conv3", "features.stage{s}.unit{b}.expand_bn3"),
    },
)
MEGVII_V1 = by_role(
    {"stem": ("first_conv.0", "first_conv.1")},
    {
        "compress": ("features.{n}.branch_main_1.0", "features.{n}.branch_main_1.1"),
        "depthwise": ("features.{n}.branch_main_1.3", "features.{n}.branch_main_1.4"),
        "expand": ("features.{n}.branch_main_2.0", "features.{n}.branch_main_2.1"),
    },
)
CV_V1 = by_role(
    CV_ENDS,
    {
        "compress": ("features.stage{s}.unit{b}.compress_conv1", "features.stage{s}.unit{b}.compress_bn1"),
        "depthwise": ("features.stage{s}.unit{b}.dw_conv2", "features.stage{s}.unit{b}.dw_bn2"),
        "expand": ("features.stage{s}.unit{b}.expand_conv3", "features.stage{s}.unit{b}.expand_bn3"),
    },
)
JAXONY = by_role(
    {"stem": ("conv1", "")},
    {
        "compress": (
            "stage{s}.ShuffleUnit_Stage{s}_{b}.g_conv_1x1_compress.conv1x1",
            "stage{s}.ShuffleUnit_Stage{s}_{b}.g_conv_1x1_compress.batch_norm",
        ),
        "depthwise": (
            "stage{s}.ShuffleUnit_Stage{s}_{b}.depthwise_conv3x3",
            "stage{s}.ShuffleUnit_Stage{s}_{b}.bn_after_depthwise",
        ),
        "expand": (
            "stage{s}.ShuffleUnit_Stage{s}_{b}.g_conv_1x1_expand.conv1x1",
            "stage{s}.ShuffleUnit_Stage{s}_{b}.g_conv_1x1_expand.batch_norm",
        ),
    },
)
AUTHORS_V2 = by_role(
    {"stem": ("pre.0", "pre.1"), "last": ("conv5.0", "conv5.1")},
    {
        "left.depthwise": ("stage{s}.{b}.shortcut.0", "stage{s}.{b}.shortcut.1"),
        "left.project": ("stage{s}.{b}.shortcut.2", "stage{s}.{b}.shortcut.3"),
        "expand": ("stage{s}.{b}.residual.0", "stage{s}.{b}.residual.1"),
        "depthwise": ("stage{s}.{b}.residual.3", "stage{s}.{b}.residual.4"),
        "project": ("stage{s}.{b}.residual.5", "stage{s}.{b}.residual.6"),
    },
)
V1, V2 = SPECS["shufflenet-v1"], SPECS["shufflenet-v2"]
INVERTED = ("mobilenet-v2", "efficientnet-b0", "efficientnet-lite0", *DENSE)

SCHEMES = [
    *((f"timm {name}", spec_of(name), timm) for name in ("mobilenet-v1", *INVERTED)),
    *((f"torchvision {name}", spec_of(name), torchvision) for name in INVERTED if "lite" not in name),
    *((f"lukemelas {name}", spec_of(name), lukemelas) for name in ("efficientnet-b0", "efficientnet-lite0")),
    ("torchvision v2", V2, TORCHVISION_V2),
    ("megvii v2", replace(V2, split="even-odd"), MEGVII_V2),
    ("pytorchcv v2", V2, CV_V2),
    ("authors v2", replace(V2, bias=True, hidden_of_input=True), AUTHORS_V2),
    ("megvii v1", replace(V1, shuffle="inverse"), MEGVII_V1),
    ("pytorchcv v1", V1, CV_V1),
    ("jaxony v1", replace(V1, bias=True, stem_plain=True), JAXONY),
]


@pytest.mark.parametrize(("spec", "scheme"), [row[1:] for row in SCHEMES], ids=[row[0] for row in SCHEMES])
def test_public_names_tell_the_order(spec, scheme):
    wanted = [module.key for module in expected_modules(spec)]
    names = list(scheme(spec))
    assert len(set(names)) == len(names) == len(wanted)
    lost = random.Random(0).sample(range(len(names)), len(names))
    found = orders([names[i] for i in lost], [wanted[i] for i in lost], wanted)
    assert [[names[lost[i]] for i in order] for order in found] == [names]


def test_numbers_count_as_numbers():
    assert orders(["b.10", "b.9", "a"], "xxy", "yxx") == [[2, 1, 0]]
    assert orders(["b10", "b9", "b"], "xxx", "xxx") == [[2, 1, 0]]


def test_names_with_one_parent_stand_together():
    names = ["a.one", "a.two", "b.one", "b.two"]
    assert orders(names, "xyxz", "xyxz") == [[0, 1, 2, 3]]
    assert orders(names, "xyxz", "xxyz") == []


def test_two_possible_orders_are_reported():
    assert len(orders(["first", "second"], "xx", "xx")) == 2
    assert orders(["first", "second"], "xy", "yx") == [[1, 0]]


@pytest.mark.parametrize(
    ("names", "kinds", "wanted"),
    [
        (["a", "a"], "xx", "xx"),
        (["a", "a.b"], "xx", "xx"),
        (["a.b", "a"], "xx", "xx"),
        (["a"], "x", "xx"),
        (["a1", "a2"], "xy", "yx"),
        ([f"{i}a" for i in range(40)], "x" * 40, "x" * 39 + "y"),  # this must not take for ever
    ],
)
def test_names_that_allow_no_order(names, kinds, wanted):
    assert orders(names, kinds, wanted) == []


def test_deep_and_long_names():
    deep = "." * 5000
    assert orders([deep + "1", deep + "0"], "xx", "xx") == [[1, 0]]
    many = [f"layer{i}" for i in range(2000)]
    assert orders(many[::-1], "x" * 2000, "x" * 2000) == [list(range(1999, -1, -1))]
