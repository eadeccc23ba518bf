"""A refusal says what the base is, and still what was wrong."""

import torch
from safetensors.torch import load_file, save_file


def test_a_fault_of_the_adapter_is_told_on_a_base_that_is_packed_in_part(files, lyc) -> None:  # type: ignore[no-untyped-def]
    packed = {"head.qweight": torch.ones(2, 2, dtype=torch.int32), "head.qzeros": torch.ones(1, dtype=torch.int32)}
    part = files.folder / "part.safetensors"
    save_file(load_file(files.base) | packed, part)
    done = lyc("fold", part, files.locon, "-o", files.folder / "fine.safetensors")
    assert done.code == 0, "what is not packed takes adapters"
    broken = files.folder / "broken.safetensors"
    save_file({**load_file(files.locon), "lycoris_fc.mystery": torch.ones(2)}, broken)
    done = lyc("fold", part, broken, "-o", files.folder / "out.safetensors")
    assert done.code == 1
    assert "is quantized by GPTQ or AWQ (head.qweight)" in done.err
    assert "lycoris_fc.mystery: no format reads this key" in done.err


def test_a_base_with_a_factor_in_it_is_not_taken_for_an_adapter(files, lyc) -> None:  # type: ignore[no-untyped-def]
    mixed = files.folder / "mixed.safetensors"
    save_file({**load_file(files.base), "fc.lora_up.weight": torch.ones(6, 2)}, mixed)
    broken = files.folder / "broken.safetensors"
    save_file({**load_file(files.locon), "lycoris_fc.mystery": torch.ones(2)}, broken)
    done = lyc("fold", mixed, broken, "-o", files.folder / "out.safetensors")
    assert done.code == 1 and "is itself an adapter" not in done.err
    assert "lycoris_fc.mystery: no format reads this key" in done.err
