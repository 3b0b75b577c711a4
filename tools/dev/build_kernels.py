#!/usr/bin/env python3
"""Compile the kernels ahead of time: a shared library for each family of CPUs, and a manifest.

    python tools/dev/build_kernels.py                # into alnumpy/kernels/lib
    python tools/dev/build_kernels.py --check        # exit code 1 if that would change a byte

Needs the extra ``build``, whose versions are pinned so that every machine makes the same bytes.

Numba's front end translates the kernels to LLVM's language, once for each width of vectors. Everything about this
machine is removed from that text; LLVM optimises it for each target; LLD links it. A library depends on nothing, not
even on libc, and exports

    int64 alnumpy_abi(void)         abi.NUMBER of the sources
    int64 alnumpy_level(void)       the best of the runners in it that this CPU can run
    void  alnumpy_run_N(10 x int64) runner.run_program, for level N
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from alnumpy.kernels.abi import NUMBER
from alnumpy.kernels.library import FOLDER, MANIFEST, sources_digest

TOOLS = ("llvmlite", "numba", "ziglang")
X86 = (("x86-64", 4), ("x86-64-v3", 8), ("x86-64-v4", 16))  # each level's name, and its lanes of float32
RISCV = "+m,+a,+f,+d,+c"
ELF = "-shared -s --no-undefined -z noseparate-code -z now --hash-style=gnu -soname libalnumpy.so"
COFF = "/dll /noentry /nodefaultlib /noimplib /Brepro /machine:x64"
MACHO = "-shared -nostdlib -Wl,-s -Wl,-install_name,@rpath/libalnumpy.dylib"
LEVEL = Path(__file__).with_name("x86_level.c")


class Target(NamedTuple):
    """A library: the CPUs that its code is for, and how it is linked."""

    triple: str
    levels: tuple[tuple[str, int], ...]  # LLVM's names of the CPUs, and lanes of float32, worst first
    features: str = ""  # features beyond those of the CPU
    link: str = f"ld.lld {ELF} -o"
    abi: str = ""


TARGETS = {
    "linux-x86_64.so": Target("x86_64-unknown-linux-gnu", X86),
    "linux-aarch64.so": Target("aarch64-unknown-linux-gnu", (("cortex-a72", 4),), "-crypto,-aes,-sha2,-crc"),
    "linux-armv7.so": Target("armv7-unknown-linux-gnueabihf", (("cortex-a7", 4),), "+neon,+vfp4,-hwdiv,-hwdiv-arm"),
    "linux-riscv64.so": Target("riscv64-unknown-linux-gnu", (("generic-rv64", 4),), RISCV, abi="lp64d"),
    "linux-riscv64-v.so": Target("riscv64-unknown-linux-gnu", (("generic-rv64", 8),), f"{RISCV},+v", abi="lp64d"),
    "windows-x86_64.dll": Target("x86_64-pc-windows-msvc", X86, link=f"lld-link {COFF} /out:"),
    "macos-arm64.dylib": Target(
        "arm64-apple-macosx11.0.0", (("apple-m1", 4),), link=f"cc -target aarch64-macos {MACHO} -o"
    ),
    "macos-x86_64.dylib": Target("x86_64-apple-macosx10.15.0", X86, link=f"cc -target x86_64-macos {MACHO} -o"),
}


def neutral(text: str, triple: str, layout: str) -> str:
    """The front end's text for another target, without anything about this process and this machine.

    Numba leaves addresses of its own objects, which nothing uses once they are internal and the optimiser has run.
    ``no-builtins`` keeps LLVM from calling memset for a loop that stores zeros.
    """
    text = re.sub(r"^target datalayout = .*$", f'target datalayout = "{layout}"', text, count=1, flags=re.M)
    text = re.sub(r"^target triple = .*$", f'target triple = "{triple}"', text, count=1, flags=re.M)
    text = re.sub(r"^(@\S+ = )(common|linkonce) global", r"\1internal global", text, flags=re.M)
    text = re.sub(r"^define (?:linkonce_odr )?", "define internal ", text, flags=re.M)
    text = re.sub(r"^(define .*\)) \{$", r'\1 nounwind "no-builtins" {', text, flags=re.M)
    if triple.startswith("armv7"):  # LLVM would split fused multiplications there if it may
        text = text.replace("@llvm.fmuladd.", "@llvm.fma.")
    return text


def exported(name: str, result: str, arguments: str, body: str, windows: bool) -> str:
    """The text of an exported function."""
    return f'define {"dllexport " * windows}{result} @{name}({arguments}) nounwind "no-builtins" {{\n{body}}}\n'


def runner(level: int, windows: bool) -> str:
    """A plain C function around the entry, whose first two arguments are for Numba's results and exceptions."""
    from alnumpy.kernels.compiler import ARGUMENTS, ENTRY

    arguments = ", ".join(f"i64 %a{i}" for i in range(ARGUMENTS))
    body = f"  %r = alloca ptr\n  %s = call i32 @{ENTRY}(ptr %r, ptr null, {arguments})\n  ret void\n"
    return exported(f"alnumpy_run_{level}", "void", arguments, body, windows)


def make_object(texts: dict[int, str], target: Target, level: int) -> bytes:
    """Object code of a target at one of its levels."""
    import llvmlite.binding as llvm

    from alnumpy.kernels.compiler import optimised

    cpu, lanes = target.levels[level]
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=cpu, features=target.features, opt=2, reloc="pic", codemodel="small", abiname=target.abi
    )
    windows = "windows" in target.triple
    text = neutral(texts[lanes], target.triple, str(machine.target_data)) + runner(level, windows)
    if level == 0:
        text += exported("alnumpy_abi", "i64", "", f"  ret i64 {NUMBER}\n", windows)
        if len(target.levels) == 1:
            text += exported("alnumpy_level", "i64", "", "  ret i64 0\n", windows)
    module = optimised(text, machine)
    if left := [line for line in str(module).splitlines() if line.startswith("@")]:
        raise SystemExit(f"{target.triple}: the kernels have global variables, so they may raise or allocate: {left}")
    code: bytes = machine.emit_object(module)
    return code


def zig(command: str, made: Path, inputs: list[Path], folder: Path) -> None:
    """Runs one of ziglang's tools, whose ``command`` ends with the option for the file that it makes."""
    caches = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(folder / "zig"))
    words = command.split()
    output = [f"{words.pop()}{made}"] if command.endswith(":") else [made]
    subprocess.run([sys.executable, "-m", "ziglang", *words, *output, *inputs], env=os.environ | caches, check=True)


def build(name: str, texts: dict[int, str], folder: Path, output: Path) -> None:
    """Makes one library."""
    target = TARGETS[name]
    objects = []
    for level, (cpu, _) in enumerate(target.levels):
        objects.append(folder / f"{name}-{cpu}.o")
        objects[-1].write_bytes(make_object(texts, target, level))
    if len(target.levels) > 1:
        level_object = folder / f"{name}-level.o"
        system = {"linux": "linux-musl", "windows": "windows-gnu", "macos": "macos"}[name.partition("-")[0]]
        flags = f"cc -target x86_64-{system} -c -O2 -g0 -fPIC -fno-stack-protector -fno-sanitize=all -o"
        zig(flags, level_object, [LEVEL], folder)
        objects.append(level_object)
    zig(target.link, folder / name, objects, folder)
    shutil.copyfile(folder / name, output / name)


def front_end(lanes: int) -> None:
    """Prints the text for vectors of ``lanes``. Call it in a process that has not imported the kernels."""
    from alnumpy.kernels import target

    target.TARGET = target.Target("", "", "", lanes)
    from alnumpy.kernels.compiler import front_end

    sys.stdout.write(front_end())


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="compare with the existing libraries instead of writing them"
    )
    parser.add_argument("--front-end", type=int, metavar="LANES", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.front_end:
        front_end(args.front_end)
        return 0
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    widths = sorted({lanes for target in TARGETS.values() for _, lanes in target.levels})
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(scratch)
        output = folder / "lib" if args.check else FOLDER
        output.mkdir(exist_ok=True)
        commands = [[sys.executable, __file__, "--front-end", str(lanes)] for lanes in widths]
        run = pool.map(lambda c: subprocess.run(c, stdout=subprocess.PIPE, text=True, check=True).stdout, commands)
        texts = dict(zip(widths, run, strict=True))
        for name in TARGETS:
            build(name, texts, folder, output)
        files = {name: hashlib.sha256(output.joinpath(name).read_bytes()).hexdigest() for name in TARGETS}
        manifest = {
            "sources": sources_digest(),
            "abi": NUMBER,
            "made_by": {name: metadata.version(name) for name in TOOLS},
            "sha256": files,
        }
        output.joinpath(MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for name in TARGETS:
            print(f"{name}: {output.joinpath(name).stat().st_size:,} bytes, {files[name][:16]}")
        if args.check:
            names = (*TARGETS, MANIFEST)
            there = {
                name: FOLDER.joinpath(name).read_bytes() if FOLDER.joinpath(name).exists() else b"" for name in names
            }
            changed = [name for name in names if output.joinpath(name).read_bytes() != there[name]]
            print(f"differ from {FOLDER}: {', '.join(changed)}" if changed else "identical to the existing ones")
            return 1 if changed else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
