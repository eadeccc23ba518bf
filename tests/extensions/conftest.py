"""What is registered in a test is forgotten after it; and the example's family."""

import sys
from collections.abc import Iterator

import pytest
from installed import PLUGIN

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.registering import temporarily


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    with temporarily():
        yield


@pytest.fixture
def lora_xs(monkeypatch: pytest.MonkeyPatch) -> type[Adapter]:
    monkeypatch.syspath_prepend(str(PLUGIN))
    from lyc_fx_example.lora_xs import LoraXS

    yield LoraXS
    for name in [name for name in sys.modules if name.startswith("lyc_fx_example")]:
        del sys.modules[name]
