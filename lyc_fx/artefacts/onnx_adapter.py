"""`.onnx_adapter`: ONNX Runtime's own file format for the inputs that an adapter is put into."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lyc_fx.errors import Unsupported
from lyc_fx.storage.files import replacing


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write inputs by their names. Raises Unsupported without ONNX Runtime."""
    try:
        from onnxruntime import AdapterFormat, OrtValue
    except ImportError as error:
        raise Unsupported(f'{path}: needs ONNX Runtime: pip install "lyc-fx[onnx]"') from error
    made = AdapterFormat()
    made.set_parameters({name: OrtValue.ortvalue_from_numpy(tensor.numpy()) for name, tensor in tensors.items()})
    made.set_adapter_version(1)
    made.set_model_version(1)
    with replacing(path) as part:
        made.export_adapter(str(part))
