"""An ONNX file of a stranger: opened only if it computes by itself, and in bounded memory.

What `export` writes has all its weights in the one file, and runs each operation once. A graph with
loops or branches could run for ever, and one with weights elsewhere reads any file of the disk.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionfast.data.sources import count_threads
from lesionfast.errors import LesionfastError, import_extra
from lesionfast.files import format_bytes

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto
    from onnxruntime import InferenceSession

MOST_BYTES = 2**31 - 1  # of an ONNX file: protobuf has no more
MOST_MEMORY = 8 * 2**30  # bytes of all that a graph computes with at a time
AGAIN = "Export the model again: lesionfast export RUN --to DIR --onnx"


def open_session(path: Path) -> "InferenceSession":
    """Return what runs an ONNX file on the processor, in at most 8 GiB of memory.

    Raises `LesionfastError` for what is no ONNX, and for a graph that `export` would not write.
    """
    runtime = import_extra("onnxruntime", "onnx", f"{path} can't be run")
    data = read_graph(path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = count_threads()
    options.log_severity_level = 4  # none: errors are raised, warnings are about the graph's form
    limit_memory(runtime)
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception of its own for each cause
        raise unreadable(path, error) from None


@cache
def limit_memory(runtime: Any) -> None:
    """Make onnxruntime refuse more memory than `MOST_MEMORY`, in the sessions that ask for it."""
    kind = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    info = runtime.OrtMemoryInfo("Cpu", kind, 0, runtime.OrtMemType.DEFAULT)
    limits = runtime.OrtArenaCfg({"max_mem": MOST_MEMORY})
    runtime.create_and_register_allocator(info, limits)


def read_graph(path: Path) -> bytes:
    """Return the bytes of an ONNX file that needs no other file, and ends.

    The same bytes are to be run, so that nobody changes the file in between. Raises
    `LesionfastError` for any other.
    """
    onnx = import_extra("onnx", "onnx", f"{path} can't be run")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise LesionfastError(
            f"{path} has {format_bytes(size)}; an ONNX file has at most {format_bytes(MOST_BYTES)}."
            f" {AGAIN}"
        )
    data = path.read_bytes()
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf's own
        raise unreadable(path, error) from None
    if problem := find_foreign(model):
        raise LesionfastError(
            f"{path} {problem}, which no export of lesionfast has, so it is not run. {AGAIN}"
        )
    return data


def unreadable(path: Path, error: Exception) -> LesionfastError:
    """Return the error for a file that is no ONNX."""
    return LesionfastError(f"{path} can't be read as ONNX: {first_line(error)}. {AGAIN}")


def find_foreign(model: "ModelProto") -> str:
    """Return what a graph has that `export` does not write; '' if nothing."""
    if model.functions:
        return "has functions of its own"
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return f"has a loop or a branch ({node.op_type[:40]})"
    for tensor in list_tensors(model):
        if tensor.data_location or tensor.external_data:
            names = [entry.value for entry in tensor.external_data if entry.key == "location"]
            return f"keeps weights in another file ({(names or ['?'])[0][:80]!r})"
    return ""


def list_tensors(model: "ModelProto") -> Iterator["TensorProto"]:
    """Yield all tensors that a graph without graphs inside has."""
    yield from model.graph.initializer
    sparse = list(model.graph.sparse_initializer)
    for node in model.graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)


def first_line(error: Exception) -> str:
    """Return the first line of an error, at most 300 characters, without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")
