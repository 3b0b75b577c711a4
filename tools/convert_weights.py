#!/usr/bin/env python3
"""Convert a PyTorch checkpoint of ALNet, or of one of its ablations, to an alnumpy weights file.

    python tools/convert_weights.py runs/mnist/best.pt -o weights/alnet-mnist.h5

Reads state dicts, training checkpoints, DataParallel ones, TorchScript archives and safetensors, whatever the names of
their modules: parameters are matched by structure. Removes the classifier. Works without torch; with torch installed
the self-test's embedding is computed by torch. Nothing in the checkpoint is executed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alnumpy import Embedder, weights
from alnumpy.cli.common import side
from alnumpy.errors import AlnumpyError, printable
from alnumpy.images import Preprocessing
from alnumpy.layers import CBAM_LAYOUTS, parameters
from alnumpy.networks import SPECS, ALNet, Spec
from alnumpy.weights import Weights
from checkpoint import Checkpoint, CheckpointError, read_checkpoint

Arrays = dict[str, np.ndarray]
BN_FIELDS = ("weight", "bias", "running_mean", "running_var")
# Without other word: what torchvision's ImageNet recipes use.
DEFAULT_MEAN, DEFAULT_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Module(NamedTuple):
    """The arrays of one torch module by field, their common name, and what kind of module has such arrays."""

    name: str
    kind: str  # "bn", "conv" (1x1 convolutions and Linear layers alike) or "?"
    arrays: Arrays

    @property
    def key(self) -> tuple:
        """What two modules must share to be matched: kind, shape, and whether there is a bias."""
        if self.kind == "bn":
            return ("bn", self.arrays["running_mean"].shape)
        return (self.kind, self.arrays["weight"].shape if "weight" in self.arrays else None, "bias" in self.arrays)

    def __str__(self) -> str:
        shape = {field: array.shape for field, array in self.arrays.items()}
        return (
            f"{self.name} {shape.get('weight', shape)}{' with bias' if 'bias' in shape and self.kind != 'bn' else ''}"
        )


def group_modules(arrays: Arrays) -> list[Module]:
    """The modules behind a flat state dict, in its order. A Linear layer becomes the 1x1 convolution that it equals."""
    fields: dict[str, Arrays] = {}
    prefix = common_prefix(list(arrays))  # "module.", "model.", "_orig_mod." of wrappers
    for name, array in arrays.items():
        module, _, field = name[len(prefix) :].rpartition(".")
        if field != "num_batches_tracked":
            fields.setdefault(module, {})[field] = array
    modules = []
    for name, members in fields.items():
        weight = members.get("weight")
        if set(members) == set(BN_FIELDS):
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
    """The dotted prefix that all names share, as "module." or ""."""
    first, last = min(names, default=""), max(names, default="")
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return first[: first.rfind(".", 0, shared) + 1]


def expected_modules(spec: Spec) -> list[Module]:
    """The modules of ``spec`` with empty arrays of the right shapes (strides of 0), in network order."""
    shapes = parameters(spec.layers())
    return group_modules({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})


def match(spec: Spec, modules: list[Module], ordered: bool) -> tuple[Arrays, list[Module]]:
    """The arrays under the spec's names, and the modules left over (the classifier).

    Where all names are the spec's, they decide. Else, among modules of equal kind and shape, the order in the
    checkpoint is the order in the network. Raises CheckpointError, which names everything that could not be matched.
    """
    wanted = expected_modules(spec)
    by_name = {m.name for m in wanted} <= {m.name for m in modules}
    if not by_name and not ordered:
        raise CheckpointError(
            "safetensors sorts modules by name, so their order in the network is lost, and these names are not "
            "alnumpy's: convert the PyTorch checkpoint, or rename the tensors as alnumpy.layers.parameters lists them"
        )
    found: Arrays = {}
    left = list(modules)
    missing = []
    units = {}
    for expected in wanted:
        module = next((m for m in left if m.key == expected.key and (m.name == expected.name or not by_name)), None)
        if module is None:
            missing.append(expected)
            continue
        left.remove(module)
        units[module.name] = expected.name.split(".")[0]
        for field, array in expected.arrays.items():
            shape = array.shape[:2] if expected.name.endswith(("fc1", "fc2")) and field == "weight" else array.shape
            found[f"{expected.name}.{field}"] = module.arrays[field].reshape(shape)
    taken = {m.key for m in wanted}
    wrong = [
        m for m in left if not is_classifier(m, spec) or m.key in taken
    ]  # a second one would make the match a guess
    if missing or wrong:
        lines = [f"  expected {m}, not found" for m in missing] + [f"  found {m}, not expected" for m in wrong]
        more = [f"  ... and {len(lines) - 12} more"] if len(lines) > 12 else []
        raise CheckpointError("\n".join([f"this is not the network {spec.name}:", *lines[:12], *more]))
    network_order = [m.name.split(".")[0] for m in wanted]
    in_file = [units[m.name] for m in modules if m.name in units]
    if not by_name:
        sure = in_file == sorted(in_file, key=network_order.index)
        note(
            "matched by structure: of modules with the same shape (two batch norms of a block, say), the first in the "
            "checkpoint was taken for the first in the network. "
            + ("" if sure else "The checkpoint does not list its modules in network order, so this can be wrong. ")
            + "Compare an embedding with the original model's"
        )
    return found, left


def is_classifier(module: Module, spec: Spec) -> bool:
    """Whether a left-over module can be the linear head on the embedding."""
    return module.kind == "conv" and module.arrays["weight"].shape[1:] == (spec.embedding, 1, 1)


def detect(base: Spec, modules: list[Module]) -> Spec:
    """``base`` with what a checkpoint's structure shows: a stem bias, and the CBAM layout but for its concat order."""
    if not isinstance(base, ALNet):
        return base
    convs = [m for m in modules if m.kind == "conv"]
    stems = [m for m in convs if m.arrays["weight"].shape == (base.stem, 3, 3, 3)]
    spec = dataclasses.replace(base, stem_bias="bias" in stems[0].arrays) if stems else base
    if not spec.cbam:
        return spec
    spatial_bn = any(m.kind == "bn" and m.arrays["running_mean"].shape == (1,) for m in modules)
    return dataclasses.replace(spec, cbam="max-mean-bias-bn") if spatial_bn else spec


def network(args: argparse.Namespace, checkpoint: Checkpoint, modules: list[Module]) -> Spec:
    """Which network the checkpoint holds, by its own record or by structure. Says on stderr what was assumed."""
    recorded = checkpoint.extras.get("spec")
    given = {key: value for key, value in (("cbam", args.cbam), ("bn_eps", args.bn_eps)) if value}
    if recorded is not None and not args.spec:
        spec = Spec.from_dict(recorded)
    else:
        spec = detect(SPECS[args.spec or "alnet"], modules)
    cbam = spec.cbam if isinstance(spec, ALNet) else ""
    if args.cbam and not cbam:
        raise CheckpointError(f"the network {spec.name} has no CBAM, so --cbam {args.cbam} does not fit it")
    spec = dataclasses.replace(spec, **given)
    if recorded is not None and not args.spec:
        return spec
    if not args.bn_eps:
        note(f"the checkpoint does not tell the eps of its batch norms; {spec.bn_eps:g} is assumed. Else: --bn-eps")
    if args.cbam:
        return spec
    if cbam and cbam != "max-mean-bias-bn":
        note(
            f"the checkpoint does not tell the order in which CBAM concatenates mean and max; {cbam} is assumed. "
            "A wrong order gives wrong embeddings without an error: if the model does torch.cat([max, mean]), "
            "convert with --cbam max-mean"
        )
    if not args.spec and isinstance(spec, ALNet):
        note("the checkpoint does not tell whether the network shuffles channels; ALNet does. Else convert with --spec")
    return spec


def embed_self_test(spec: Spec, arrays: Arrays, embedder: Embedder, x: np.ndarray) -> tuple[np.ndarray, str]:
    """The embedding of the self-test's input and what computed it: torch where it is installed, else alnumpy."""
    try:
        import torch

        from torch_network import from_arrays
    except ImportError:
        note("torch is not installed: the self-test is recorded by alnumpy itself and proves less")
        return embedder.forward(x), "alnumpy"
    with torch.inference_mode():
        return from_arrays(spec, arrays)(torch.from_numpy(x)).numpy(), f"torch {torch.__version__}"


def convert(args: argparse.Namespace) -> None:
    """Reads, matches, checks and writes; raises AlnumpyError or OSError before anything is written."""
    if args.output.exists() and args.output.samefile(args.checkpoint):
        raise CheckpointError("the output would replace the checkpoint; give -o another name")
    checkpoint = read_checkpoint(args.checkpoint)
    modules = group_modules(checkpoint.tensors)
    spec = network(args, checkpoint, modules)
    arrays, removed = match(spec, modules, checkpoint.ordered)
    how = Preprocessing.from_dict(dict(preprocessing_fields(args, checkpoint)))
    exact = {name: array.astype(np.float32) for name, array in arrays.items()}
    with np.errstate(over="ignore"):
        stored = {name: array.astype(args.dtype).astype(np.float32) for name, array in exact.items()}
    for name, array in stored.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{name} has values that are not finite{' as float16' * (args.dtype == 'float16')}")

    x = weights.self_test_picture(weights.self_test_size(how))
    digest = hashlib.sha256(args.checkpoint.read_bytes()).hexdigest()
    blank = np.zeros((1, spec.embedding), np.float32)
    draft = Weights(spec, how, stored, x, blank, "", args.checkpoint.name, digest, dict(args.card), args.dtype)
    embedding, by = embed_self_test(spec, stored, Embedder(draft, backend="numpy"), x)
    weights.write(args.output, dataclasses.replace(draft, self_test_embedding=embedding, self_test_by=by))
    written = Embedder(weights.read(args.output))

    print(f"{args.output}: {spec.name}, {len(arrays)} arrays as {args.dtype}, {args.output.stat().st_size} bytes")
    for module in removed:
        print(f"removed the classifier: {printable(module)}")
    print(f"self-test by {by}: relative error {written.self_test().relative_error:.2e}")
    if args.dtype == "float16":
        before = Embedder(dataclasses.replace(draft, parameters=exact)).forward(x)[0].astype(np.float64)
        after = written.forward(x)[0].astype(np.float64)
        cosine = before @ after / (np.linalg.norm(before) * np.linalg.norm(after))
        print(f"loss of float16: 1 - cosine of the self-test's embeddings = {1 - cosine:.2e}")


def preprocessing_fields(args: argparse.Namespace, checkpoint: Checkpoint) -> Iterator[tuple[str, object]]:
    """Preprocessing from the command line, else from the checkpoint's record, else ImageNet's numbers at 128 pixels."""
    defaults = {"size": 128, "mean": DEFAULT_MEAN, "std": DEFAULT_STD}
    recorded = checkpoint.extras.get("preprocessing")
    if isinstance(recorded, dict):
        defaults |= recorded
    elif args.size is None or args.mean is None or args.std is None:
        note(
            "the checkpoint does not tell its preprocessing: what --size, --mean and --std do not give "
            "is taken to be 128 pixels and ImageNet's numbers"
        )
    given = {key: getattr(args, key) for key in ("size", "mean", "std", "interpolation", "channels")}
    yield from (defaults | {key: value for key, value in given.items() if value is not None}).items()


def note(message: str) -> None:
    """A remark on stderr, one line for each line of the message: results go to stdout."""
    print("convert_weights.py:", "\n".join(map(printable, message.split("\n"))), file=sys.stderr)


def number(text: str) -> float:
    """An argument that is a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, not {text!r}")
    return value


def card_field(text: str) -> tuple[str, str]:
    """An argument of the form NAME=TEXT."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"must be NAME=TEXT, not {text!r}")
    return name, value


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 converted, 1 the checkpoint cannot be converted (nothing was written), 2 wrong usage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help=".pt, .pth, TorchScript or .safetensors file"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.h5", help="weights file to write")
    parser.add_argument("--spec", choices=SPECS, help="which network (default: the checkpoint's record, or alnet)")
    parser.add_argument(
        "--cbam", choices=CBAM_LAYOUTS, help="CBAM layout (default: the checkpoint's record, or its structure)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of the file (default: %(default)s)"
    )
    parser.add_argument(
        "--bn-eps", type=number, help="eps of the batch norms (default: the checkpoint's record, or 1e-5)"
    )
    parser.add_argument("--size", type=side, help="side of the network's input in pixels")
    parser.add_argument("--mean", type=number, nargs=3, help="subtracted from pixels in 0..1, by channel")
    parser.add_argument("--std", type=number, nargs=3, help="then divided by, by channel")
    parser.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="of resizing (default: bilinear)")
    parser.add_argument("--channels", choices=("RGB", "BGR"), help="channel order (default: RGB)")
    parser.add_argument(
        "--card", type=card_field, action="append", default=[], metavar="NAME=TEXT", help="model card field"
    )
    args = parser.parse_args(argv)
    try:
        convert(args)
    except OSError as error:
        note(f"{error.filename or args.checkpoint}: {error.strerror or error}")
        return 1
    except AlnumpyError as error:
        note(f"{args.checkpoint}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
