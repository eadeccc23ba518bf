"""`lyc-fx demo`: the main task on a real model with a real adapter, in under two minutes."""

from pathlib import Path
from typing import Annotated

import typer

from lyc_fx.cli.demo.data import Data, Name
from lyc_fx.cli.progress import working


def command(
    adapter: Annotated[Name, typer.Option(help="Which of the trained adapters to use.")] = "loha",
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder examples/minilm of a checkout.")] = None,
) -> None:
    """Run the main task on real data: fold an adapter into all-MiniLM-L6-v2, and search code with it."""
    found = Data.find(data, adapter)
    with working("importing torch and transformers"):
        from lyc_fx.cli.demo.story import tell
    tell(found)
