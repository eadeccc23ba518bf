"""A plug-in of lyc-fx. `pyproject.toml` says what is in it; nothing has to be imported."""
