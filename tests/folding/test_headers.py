"""The header of a safetensors file is the same to the byte, whoever writes it, and safetensors reads it."""

from io import BytesIO

import torch
from safetensors.torch import load

from lyc_fx.storage.files import write_safetensors
from lyc_fx.storage.header import Stored, lay_out

TENSORS = {
    "é.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "a": torch.tensor(1.5, dtype=torch.float64),
    "empty": torch.ones(0, 4),
    "codes": torch.ones(3).to(torch.float8_e4m3fn),
}


def test_a_fold_and_a_saved_file_have_the_same_header() -> None:
    metadata, written = {"z": "last", "a": "first"}, BytesIO()
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    write_safetensors(written, layout, TENSORS.items(), metadata)
    data = written.getvalue()
    dtypes = {name: tensor.dtype for name, tensor in TENSORS.items()}
    folded = lay_out([Stored(n, torch.float32, tuple(t.shape), 7) for n, t in TENSORS.items()], dtypes, metadata)
    assert data.startswith(folded.header) and len(data) == folded.bytes
    assert len(folded.header) % 8 == 0
    assert folded.header[8:].startswith(
        '{"__metadata__":{"a":"first","z":"last"},"é.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},'
        '"a":{"dtype":"F64","shape":[],"data_offsets":[12,20]},'.encode()
    )
    assert [(t.name, t.start - len(folded.header)) for t in folded.tensors] == [
        ("é.weight", 0), ("a", 12), ("empty", 20), ("codes", 20),
    ]  # fmt: skip
    read = load(data)
    assert all(torch.equal(read[name].double(), tensor.double()) for name, tensor in TENSORS.items())
