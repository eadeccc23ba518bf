"""Runs a file in a process that has neither lyc-fx nor the model's library: a script, whose text is run by `python -c`.

Arguments: the kind of file, the file, a file of inputs, and where to store the outputs.
"""

import sys

for _missing in ("lyc_fx", "transformers", "diffusers"):
    sys.modules[_missing] = None  # type: ignore[assignment]  # so that importing it raises ImportError

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402


def runs(kind: str, path: str):  # type: ignore[no-untyped-def]
    """Load a file, and return a function of args, kwargs and the tensors in them by name."""
    if kind == "pt2":
        module = torch.export.load(path).module()
        return lambda args, kwargs, named: module(*args, **kwargs)
    if kind == "aoti":
        package = torch._inductor.aoti_load_package(path)
        return lambda args, kwargs, named: package(*args, **kwargs)
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(args, kwargs, named):  # type: ignore[no-untyped-def]
        feeds = {name: value.numpy() for name, value in named.items()}
        return [torch.from_numpy(value) for value in session.run(None, feeds)]

    return run


if __name__ == "__main__":
    kind, path, trials, found = sys.argv[1:]
    call = runs(kind, path)
    results = []
    with torch.no_grad():
        for given in torch.load(trials, weights_only=True):
            torch.manual_seed(0)
            results.append([each for each in tree_leaves(call(*given)) if isinstance(each, Tensor)])
    torch.save(results, found)
