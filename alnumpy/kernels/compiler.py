"""The runner as object code: Numba's front end, then LLVM's optimiser once over the whole program.

Object code needs llvmlite to be loaded, but not Numba, whose import alone takes longer than embedding many pictures.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm

from .target import TARGET

ENTRY = "alnumpy_run_program"
ARGUMENTS = 10  # number of run_program's arguments, all int64

_engines: list[Any] = []  # the engines own the code


def sign(code: bytes) -> bytes:
    """A digest of object code and what it was made for."""
    return hashlib.sha256(repr(TARGET).encode() + b"\0" + code).digest()


def _target_machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(TARGET.triple)
    return target.create_target_machine(cpu=TARGET.cpu, features=TARGET.features, opt=2, jit=True)


def front_end() -> str:
    """LLVM's text of ``runner.run_program`` as Numba writes it, not yet optimised, in the function ENTRY.

    Raises ImportError if Numba is not installed.
    """
    import numba
    from numba.core.registry import cpu_target

    from .runner import run_program

    cpu_target.target_context.codegen()  # takes its level from the configuration, once per process
    config: Any = numba.config
    signature = (numba.int64,) * ARGUMENTS
    level = config.OPT
    try:
        config.OPT = type(level)(0)  # Numba would optimise each kernel, then all of them again in each caller
        run_program.compile(signature)
    finally:
        config.OPT = level
    name = run_program.overloads[signature].fndesc.llvm_func_name
    text: str = run_program.inspect_llvm(signature).replace(name, ENTRY)
    return text


def optimised(text: str, machine: llvm.TargetMachine) -> llvm.ModuleRef:
    """A module that LLVM has optimised."""
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = False  # kernels are vectorised by hand
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module


def compile_runner() -> bytes:
    """Object code of ``runner.run_program`` for the target. Raises ImportError if Numba is not installed."""
    machine = _target_machine()
    return machine.emit_object(optimised(front_end(), machine))


def link(code: bytes) -> Callable[..., None]:
    """Loads object code; returns a function of ARGUMENTS integers that releases the GIL while it runs."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    # Numba's calling convention: places for a result and an exception, of which there are none, then the arguments.
    prototype = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * ARGUMENTS)
    function = prototype(engine.get_function_address(ENTRY))
    result = ctypes.byref(ctypes.c_void_p())

    def run_program(*arguments: int) -> None:
        function(result, None, *arguments)

    return run_program
