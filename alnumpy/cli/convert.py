"""The command convert."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import AlnumpyError, printable
from ..images import INTERPOLATIONS
from ..layers import CBAM_LAYOUTS
from ..networks import SPECS, Spec
from ..weights import DTYPES, available
from .common import Command, UsageError, side

HELP = "convert a PyTorch checkpoint, or other weights, to a weights file, without torch; nothing in it is executed"
PREPROCESSING = ("size", "mean", "std", "interpolation", "channels", "share")


def number(text: str) -> float:
    """An argument that is a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, not {text!r}")
    return value


def assignment(text: str) -> tuple[str, str]:
    """An argument of the form NAME=TEXT."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"must be NAME=TEXT, not {text!r}")
    return name, value


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``alnumpy convert``."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help=".pt, .pth, TorchScript or .safetensors file; or a weights file or a name of alnumpy models, to be stored "
        "as another --dtype or with another --size, --normalize or --card",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.h5", help="weights file to write")
    parser.add_argument(
        "--spec", choices=SPECS, help="which network (default: by its record, its content or its shapes)"
    )
    parser.add_argument(
        "--cbam", choices=CBAM_LAYOUTS, help="CBAM layout (default: the checkpoint's record, or its structure)"
    )
    parser.add_argument(
        "--bn-eps", type=number, help="eps of the batch norms (default: the checkpoint's record, or the network's)"
    )
    parser.add_argument(
        "--set",
        type=assignment,
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another field of the network, such as padding=same; may be repeated",
    )
    parser.add_argument("--names", type=Path, metavar="FILE", help="lines of alnumpy's name of a module and its own")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE.npz",
        help="preprocessed pictures (input) and your model's embeddings of them (embedding), which must come out equal",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the file: a half or a quarter of the size (default: %(default)s)",
    )
    parser.add_argument("--size", type=side, help="side of the network's input in pixels")
    parser.add_argument("--mean", type=number, nargs=3, help="subtracted from pixels in 0..1, by channel")
    parser.add_argument("--std", type=number, nargs=3, help="then divided by, by channel")
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, help="of resizing (default: bilinear)")
    parser.add_argument("--channels", choices=("RGB", "BGR"), help="channel order (default: RGB)")
    parser.add_argument("--share", type=number, help="share of the short side that is kept, as 0.875 (default: 1)")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="record that embeddings are to be divided by their L2 norms before they are compared, or not",
    )
    parser.add_argument(
        "--card", type=assignment, action="append", default=[], metavar="NAME=TEXT", help="model card field"
    )


def lines(message: str) -> str:
    """A message of several lines, each of them printable."""
    return "\n".join(map(printable, message.split("\n")))


def note(message: str) -> None:
    """A remark on stderr."""
    print("alnumpy:", lines(message), file=sys.stderr)


def run(args: argparse.Namespace, note: Callable[[str], None] = note, **options: Any) -> int:
    """``alnumpy convert``. ``options`` are those of ``convert.convert`` that the command line does not have."""
    from ..convert import convert

    source = args.checkpoint if args.checkpoint.exists() else available().get(str(args.checkpoint), args.checkpoint)
    base = SPECS[args.spec] if args.spec else None
    fields: dict[str, Any] = {name: _value(name, text, base) for name, text in args.set}
    fields |= {name: getattr(args, name) for name in ("cbam", "bn_eps") if getattr(args, name)}
    given = {name: getattr(args, name) for name in PREPROCESSING if getattr(args, name) is not None}
    try:
        made = convert(
            source,
            args.output,
            base=base,
            fields=fields,
            preprocessing=given,
            names=args.names,
            against=args.against,
            dtype=args.dtype,
            card=dict(args.card),
            normalize=args.normalize,
            note=note,
            **options,
        )
    except (AlnumpyError, OSError) as error:
        if getattr(args, "debug", False):
            raise
        named = getattr(error, "filename", None) or source
        note(f"{named}: {getattr(error, 'strerror', None) or error}")
        return 1
    size = args.output.stat().st_size
    spec, dtype = made.weights.spec.name, made.weights.dtype
    print(f"{args.output}: {spec}, {len(made.weights.parameters)} arrays as {dtype}, {size} bytes")
    for module in made.removed:
        print(f"removed the classifier: {printable(module)}")
    print(f"self-test by {made.weights.self_test_by}: relative error {made.relative_error:.2e}")
    if made.error_against is not None:
        print(f"beside {args.against}: relative error {made.error_against:.2e}")
    if made.loss is not None:
        print(f"loss of {dtype}: 1 - cosine of the self-test's embeddings = {made.loss:.2e}")
    return 0


def _value(name: str, text: str, base: Spec | None) -> Any:
    """The value of a network's field from its text. Raises UsageError where no network has such a field."""
    specs = [base] if base else SPECS.values()
    defaults = [f.default for spec in specs for f in dataclasses.fields(spec) if f.name == name]
    kinds = {type(default) for default in defaults} - {tuple}
    for kind, convert in ((bool, {"true": True, "false": False}.get), (int, int), (float, float), (str, str)):
        if kind in kinds:
            try:
                value = convert(text)
            except ValueError:
                continue
            if value is not None:
                return value
    known = sorted({f.name for spec in specs for f in dataclasses.fields(spec)})
    raise UsageError(f"--set {name}={text}: no such field or value; fields are {', '.join(known)}")


CONVERT = Command(
    "convert",
    "CHECKPOINT -o FILE.h5",
    HELP,
    "alnumpy convert mobilenet_v2-b0353104.pth -o mobilenet-v2.h5\n"
    "  alnumpy convert alnet-photo --dtype int8 -o alnet-photo-int8.h5",
    arguments,
    run,
)
