"""Machine code of the kernel: compiled by numba once per machine, kept, and loaded by llvmlite alone.

Importing numba and its registries costs 0.7 CPU seconds and 100 MB in every process; loading the kept object
file costs a few hundredths. It is kept beside this module or in the user's cache folder, under a name that
holds a hash of the kernel's source, the compiler's version and the processor.
`python -m pipeline.tables.native` compiles ahead of time (container images, `make setup`).
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import sys
import tempfile
import threading
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.errors import VerificationFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)
_SOURCES: Final = ("kernel.py", "thinning_kernel.py", "codes.py")
_lock = threading.Lock()


def call(function: int, number: int, *arrays: NDArray[Any]) -> int:
    """Runs one of the kernel's functions (`codes.SHRED` ...) on contiguous arrays, without the GIL.

    `number` is the function's one integer; the arrays follow in the order of its parameters.
    """
    values = [function, number]
    for array in arrays:
        if not array.flags.c_contiguous:
            raise ValueError("the kernel takes contiguous arrays only")
        values += (array.__array_interface__["data"][0], array.size)
    table = np.array(values + [0] * (64 - len(values)), np.int64)
    result = ctypes.c_int64()
    trouble = ctypes.c_void_p()
    status = _entry()(ctypes.byref(result), ctypes.byref(trouble), table.__array_interface__["data"][0])
    if status != 0:
        raise VerificationFailed(
            "The conversion kernel stopped with an error", "This is a defect of the pipeline; nothing is lost"
        )
    return result.value


def _entry() -> Any:
    with _lock:
        return _loaded()


@cache
def _loaded() -> Any:
    import llvmlite.binding as llvm

    name, code = _kept() or _compiled()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    # Named in the code for arrays that own memory; the kernel's arrays never do.
    llvm.add_symbol("NRT_MemInfo_call_dtor", ctypes.cast(_never, ctypes.c_void_p).value)
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_void_p), ctypes.c_int64
    )
    return prototype(engine.get_function_address(name))


_engines: list[Any] = []
_never = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)


def _kept() -> tuple[str, bytes] | None:
    for folder in _folders():
        try:
            digest, rest = (folder / _file_name()).read_bytes().split(b"\n", 1)
            name, code = rest.split(b"\n", 1)
        except (OSError, ValueError):
            continue
        # Damaged machine code would end the process without a word.
        if digest.decode(errors="replace") == hashlib.sha256(rest).hexdigest():
            return name.decode(), code
        _log.warning("the kept kernel in %s is damaged", folder)
    return None


def _compiled() -> tuple[str, bytes]:
    _log.info("compiling the conversion kernel, once on this machine (about a minute)")
    from pipeline.tables import kernel

    name, code = kernel.compiled()
    rest = name.encode() + b"\n" + code
    digest = hashlib.sha256(rest).hexdigest().encode()
    for folder in _folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(digest + b"\n" + rest)
            Path(file.name).chmod(0o644)  # what one user installs, others run
            Path(file.name).replace(folder / _file_name())
        except OSError:
            continue
        break
    else:
        _log.warning("no folder to keep the compiled kernel in: every process will compile it again")
    return name, code


def _folders() -> list[Path]:
    """Where the code may lie: only folders that belong to this user or to the installation."""
    beside = Path(__file__).parent / "__pycache__"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    return [beside, Path(home) / "fhir-export-pipeline"] if home.startswith("/") else [beside]


@cache
def _file_name() -> str:
    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    for source in _SOURCES:
        digest.update((Path(__file__).parent / source).read_bytes())
    versions = [metadata.version(package) for package in ("numba", "llvmlite", "numpy")]
    processor = [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), llvm.get_process_triple()]
    digest.update(repr([sys.version_info[:2], versions, processor]).encode())
    return f"kernel-{digest.hexdigest()[:24]}.o"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    _entry()
