"""Every mistake is one message that says what, where and what to do; nothing is written, and nothing is lost."""

import pytest
import torch
from mistakes import (
    AGAIN,
    GGUF,
    GONE,
    JSON,
    PAGE,
    POINTER,
    Case,
    base,
    changed,
    factors,
    fold,
    locon,
    named,
    quantized,
    stored,
    text,
)  # fmt: skip

OTHER = "None of the names is the model's: are these adapters for another model?"
FILES: dict[str, Case] = {
    "gguf": (
        fold(named("m.gguf", GGUF), locon),
        "…/m.gguf: is a GGUF file, quantized for llama.cpp or ComfyUI: fold into the safetensors model that it was "
        "made "
        "of, and convert that again",
    ),
    "pointer": (
        fold(base, named("a.safetensors", POINTER)),
        "…/a.safetensors: is a git-lfs pointer of a few bytes, not the file itself: `git lfs pull`, or download it",
    ),
    "page": (
        fold(base, named("a.safetensors", PAGE)),
        "…/a.safetensors: is a web page, most likely a login or an error: download the file again, with a token "
        "where it "
        "asks for one",
    ),
    "json": (
        fold(base, named("adapter_config.json", JSON)),
        "…/adapter_config.json: is a JSON file: name the .safetensors file, or the directory that holds both",
    ),
    "exported": (
        fold(base, named("m.pt2", b"PK\x03\x04")),
        "…/m.pt2: is an exported program: adapters can be folded into it (lyc-fx fold MODEL.pt2 ADAPTER -o OUT.pt2), "
        "or torch.export.load it, and give that to lyc_fx.capture",
    ),
    "output of a program": (
        fold(named("m.pt2", b"PK\x03\x04"), locon),
        "…/out.safetensors: the output is a .pt2 file, as the base is: name it out.pt2",
    ),
    "onnx": (
        fold(base, named("m.onnx", b"\x08\x08")),
        "…/m.onnx: is an ONNX model: adapters can be folded into it (lyc-fx fold MODEL.onnx ADAPTER -o OUT.onnx)",
    ),
    "pickle": (
        fold(base, named("a.ckpt", b"PK\x03\x04")),
        "…/a.ckpt: is a pickle (torch.save), which can run code when loaded. Convert it where you trust it: "
        "safetensors.torch.save_file(torch.load(path, weights_only=True), out)",
    ),
    "missing": (fold(base, text("…/nope.safetensors")), "…/nope.safetensors: there is no such file"),
    "missing with a strength": (fold(base, text("…/nope.st@0.5")), "…/nope.st: there is no such file"),
    "colon": (
        fold(base, text("…/locon.safetensors:0.7")),
        "…/locon.safetensors:0.7: there is no such file; a strength stands behind @: …/locon.safetensors@0.7",
    ),
    "hub": (
        fold("meta-llama/Llama-3.2-1B", locon),
        "meta-llama/Llama-3.2-1B: there is no such file or folder; if it is a model on the Hub, download it first: "
        "hf download meta-llama/Llama-3.2-1B",
    ),
    "address": (
        fold(base, "https://example.org/a.safetensors"),
        "https:/example.org/a.safetensors: is an address: download the file first, and name it",
    ),
    "directory": (
        fold(lambda f: f.folder / "empty", locon),
        "…/empty: this folder contains no .safetensors file",
    ),
    "cut": (
        fold(base, lambda f: named("cut.st", f.locon.read_bytes()[:64])(f)),
        "…/cut.st: not a whole safetensors file (64 bytes; Error while deserializing header: invalid header length). "
        "Download or save it again.",
    ),
}
LOST_CONV = "  …/locon.safetensors: lycoris_block_0_conv: no such weight in the model"
LOST_FC = "  …/locon.safetensors: lycoris_fc: no such weight in the model"
PACKED = (
    "  …/locon.safetensors: lycoris_fc: fc.weight is stored as torch.int32; adapters need a floating-point weight\n"
    + LOST_CONV
)
BASES: dict[str, Case] = {
    name: (
        fold(stored("q.safetensors", quantized(*names)), locon),
        f"…/q.safetensors: is quantized by {quantizer} ({names[0]}), {GONE}: {AGAIN}.\n2 adapters cannot be applied:\n"
        + (PACKED if "fc.weight" in names else f"{LOST_CONV}\n{LOST_FC}"),
    )
    for name, quantizer, *names in (
        ("gptq", "GPTQ", "fc.qweight", "fc.qzeros", "fc.scales", "fc.g_idx"),
        ("gptq or awq", "GPTQ or AWQ", "fc.qweight", "fc.qzeros", "fc.scales"),
        ("bnb", "bitsandbytes", "fc.weight.absmax", "fc.weight.quant_map", "fc.weight"),
        ("int8", "bitsandbytes", "fc.SCB", "fc.weight"),
        ("compressed", "compressed-tensors", "fc.weight_packed", "fc.weight_shape", "fc.weight_scale"),
        ("mxfp4", "MXFP4", "experts.down_proj_blocks", "experts.down_proj_scales"),
        ("mlx", "MLX", "fc.scales", "fc.biases", "fc.weight"),
    )
}
MEANT: dict[str, Case] = {
    "swapped": (
        fold(locon, base),
        "…/base.safetensors: none of its keys (4) is of a known adapter format (peft, xlabs, diffusers, nhwc, lycoris, "
        "comfyui): block.0.conv.weight, fc.bias, fc.weight; if this is the model, it comes first: lyc-fx fold BASE "
        "ADAPTER "
        "-o OUT",
    ),
    "twice an adapter": (
        fold(locon, lambda f: f.lokr),
        "…/locon.safetensors: is itself an adapter; give the model first: lyc-fx fold BASE ADAPTER -o OUT",
    ),
    "flux": (
        fold(base, stored("a.safetensors", factors("lora_unet_double_blocks_0_img_attn_proj"))),
        "1 adapter cannot be applied:\n  …/a.safetensors: lora_unet_double_blocks_0_img_attn_proj: no such weight "
        "in the "
        f"model\n{OTHER} Its names are those of Flux or HunyuanVideo, with their original names.",
    ),
    "as it says": (
        fold(base, stored("a.safetensors", factors("lora_unet_x"), {"ss_base_model_version": "sdxl_base_v1-0"})),
        "1 adapter cannot be applied:\n  …/a.safetensors: lora_unet_x: no such weight in the model\n"
        f"{OTHER} The file says that it is for sdxl_base_v1-0 (ss_base_model_version).",
    ),
    "another component": (
        fold(base, stored("a.safetensors", {**factors("lora_unet_fc"), **factors("lora_te1_encoder")})),
        "1 adapter cannot be applied:\n  …/a.safetensors: 1 adapter of another component, lora_te1_*, such as "
        "lora_te1_encoder\nThese adapters are for other components of a pipeline: give the whole pipeline "
        "(lyc_fx.merge("
        'pipe, …)), or leave them out: adapters.exclude("lora_te1_*") (command line: --exclude "lora_te1_*").',
    ),
    "misspelt": (
        fold(base, stored("a.safetensors", {**factors("lycoris_fc"), **factors("lycoris_blok_0_conv")})),
        "1 adapter cannot be applied:\n  …/a.safetensors: lycoris_blok_0_conv: no such weight in the model; nearest: "
        "block.0.conv.weight\nstrict=False (command line: --no-strict) applies the rest and lists these in the report.",
    ),
    "shape": (
        fold(base, changed(lycoris_fc__lora_up__weight=torch.ones(7, 2))),
        "1 adapter cannot be applied:\n  …/changed.safetensors: lycoris_fc: does not fit fc.weight (6, 4): "
        "lora_up.weight "
        "is (7, 2), the weight asks for (6, 2)",
    ),
    "unread": (
        fold(base, changed(lycoris_fc__mystery=torch.ones(2))),
        "1 adapter cannot be applied:\n  …/changed.safetensors: lycoris_fc.mystery: no format reads this "
        "key\nWithout such "
        "a key, the result may differ from the adapter that was trained: leave these modules out by name "
        "(adapters.exclude, command line: --exclude PATTERN), or apply the rest and list these keys in the report: "
        "strict=False (command line: --no-strict).",
    ),
    "incomplete": (
        fold(base, changed(lycoris_fc__lora_up__weight=None)),
        "…/changed.safetensors: 1 module cannot be used:\n  lycoris_fc: locon without lora_up.weight is not complete",
    ),
    "nan": (
        fold(base, changed(lycoris_fc__lora_up__weight=torch.full((6, 2), float("nan")))),
        "…/changed.safetensors: 1 module cannot be used:\n  lycoris_fc: lora_up.weight holds 12 values that are not "
        "finite",
    ),
    "infinite alpha": (
        fold(base, changed(lycoris_fc__alpha=torch.tensor(float("inf")))),
        "…/changed.safetensors: 1 module cannot be used:\n  lycoris_fc: alpha is inf",
    ),
}
OPTIONS: dict[str, Case] = {
    "excludes all": (fold(base, locon, "--exclude", "*"), "--only and --exclude leave no adapter"),
    "pattern": (
        fold(base, locon, "--exclude", "lora_te_*"),
        "no module matches 'lora_te_*'; the first is lycoris_block_0_conv",
    ),
    "block": (
        fold(base, locon, "--block", "attn.*=0.5"),
        "1 adapter cannot be applied:\n  strength: no adapted weight matches 'attn.*'",
    ),
    "transposed": (
        fold(base, locon, "--transposed", "h.*.weight"),
        "transposed: no weight matches 'h.*.weight'; the first is steps",
    ),
    "component": (
        fold(base, locon, "--component", "transformer_2"),
        "component transformer_2: is not one of the components with the same parameter names: the model has none",
    ),
    "not finite": (fold(base, text("…/locon.safetensors@nan")), "…/locon.safetensors: strength nan is not finite"),
    "onto the base": (
        fold(base, locon, out="base.safetensors"),
        "…/base.safetensors: is an input as well as the output; name another output",
    ),
    "no suffix": (
        fold(base, locon, out="merged"),
        "…/merged: the output is a safetensors file: name it merged.safetensors",
    ),
    "checkpoint": (
        fold(base, locon, out="merged.ckpt"),
        "…/merged.ckpt: the output is a safetensors file: name it merged.ckpt.safetensors",
    ),
    "resume": (
        fold(base, locon, "--resume"),
        "…/out.safetensors: resume=True (command line: --resume) works only for folders: a single file is always "
        "written from the start",
    ),
    "convention": (
        lambda f: ["convert", f.locon, "--to", "diffusers", "-o", f.folder / "c.safetensors"],
        "…/locon.safetensors: lycoris_block_0_conv, lycoris_fc: the model's own names and shapes cannot be derived "
        "from these; give the model that they are for, or a checkpoint of it: like=… (command line: --like FILE)",
    ),
    "inspect a model": (
        lambda f: ["inspect", f.base],
        "…/base.safetensors: none of its keys (4) is of a known adapter format (peft, xlabs, diffusers, nhwc, lycoris, "
        "comfyui): block.0.conv.weight, fc.bias, fc.weight; if this is the model, it comes first: lyc-fx fold BASE "
        "ADAPTER "
        "-o OUT",
    ),
    "coverage of nothing": (
        lambda f: ["coverage", f.folder / "nope", f.locon],
        "…/nope: there is no such file",
    ),
}
CASES = {**FILES, **BASES, **MEANT, **OPTIONS}


def test_there_are_forty() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_a_mistake(name: str, files, lyc) -> None:  # type: ignore[no-untyped-def]
    spoil, message = CASES[name]
    (files.folder / "empty").mkdir()
    arguments = spoil(files)
    before = files.held()
    said = lyc(*arguments)
    assert said.err == f"error: {message}\n".replace("…/", f"{files.folder}/")
    assert (said.code, said.out) == (1, "")
    assert files.held() == before
