"""What was given in the place of a safetensors file, said in a sentence that tells what to do."""

import re
from pathlib import Path

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_ZIP = b"PK\x03\x04"
_STARTS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    (
        (b"GGUF",),
        "is a GGUF file, quantized for llama.cpp or ComfyUI: fold into the safetensors model that it was made of, and "
        "convert that again",
    ),
    (
        (b"version https://git-lfs",),
        "is a git-lfs pointer of a few bytes, not the file itself: `git lfs pull`, or download it",
    ),
    (
        (b"<!doctype", b"<html"),
        "is a web page, most likely a login or an error: download the file again, with a token where it asks for one",
    ),
    ((b"\x89hdf",), "is an HDF5 file (Keras): lyc-fx reads safetensors"),
    ((b"{", b"["), "is a JSON file: name the .safetensors file, or the directory that holds both"),
)
_PICKLE = (
    "is a pickle (torch.save), which can run code when loaded. "
    "Convert it where you trust it: safetensors.torch.save_file(torch.load(path, weights_only=True), out)"
)
_SUFFIXES = {
    ".pt2": "is an exported program: adapters can be folded into it (lyc-fx fold MODEL.pt2 ADAPTER -o OUT.pt2), or "
    "torch.export.load it, and give that to lyc_fx.capture",
    ".onnx": "is an ONNX model: adapters can be folded into it (lyc-fx fold MODEL.onnx ADAPTER -o OUT.onnx)",
    ".engine": "is a TensorRT engine: fold into the PyTorch checkpoint that it was made of, and build it again",
    ".gguf": _STARTS[0][1],
}
_FILES = (".safetensors", ".st", ".bin", ".json")
_NUMBER = re.compile(r"[-+]?\d*\.?\d+")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_STRENGTH = re.compile(r"(.+):([-+]?\d*\.?\d+)")


def said_of_content(path: Path, start: bytes) -> str | None:
    """What a file is by its name and its first bytes; None where it may be a safetensors file."""
    if start[4:9] == b"\0\0\0\0{":  # the length of a header may begin as anything does
        return None
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    plain = start.lstrip().lower()
    for starts, sentence in _STARTS:
        if any(plain.startswith(each.lower()) for each in starts):
            return sentence
    return _PICKLE if start.startswith((_ZIP, *_PICKLES)) else None


def said_of_missing(path: str) -> str:
    """What a path is where nothing is."""
    if re.match(r"(https?|hf|s3)(://|:/)", path):
        return "is an address: download the file first, and name it"
    match = _STRENGTH.fullmatch(path)
    if match is not None and Path(match[1]).exists():
        return f"there is no such file; a strength stands behind @: {match[1]}@{match[2]}"
    name, _, number = path.rpartition("@")
    if name and _NUMBER.fullmatch(number):
        return said_of_missing(name)
    if _HUB.fullmatch(path) and not path.startswith(".") and Path(path).suffix not in _FILES:
        return f"there is no such file or folder; if it is a model on the Hub, download it first: hf download {path}"
    return "there is no such file"
