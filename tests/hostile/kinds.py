"""What may stand where a file is expected, and pickles that would leave a mark if they were loaded."""

import os
import pickle
import random
import socket
import zipfile
from pathlib import Path

from hostile.draft import Draft

MARK = "payload_was_run"


class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._mark),)


def placed(rng: random.Random, draft: Draft, folder: Path) -> Path:
    """Something else than a whole adapter, at the path that is given back."""
    draft.written(folder)
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    pickled = pickle.dumps(Payload(folder.parent / MARK), protocol=rng.randrange(6))
    kind = rng.randrange(16)
    match kind:
        case 0:
            file.write_bytes(b"")
        case 1:
            return folder.parent
        case 2:
            file.write_bytes(pickled)
        case 3:
            file.unlink()
            config.write_text("{}")
            (folder / "adapter_model.bin").write_bytes(pickled)
            return folder
        case 4:
            (folder / "adapter_model.bin").write_bytes(pickled)
            return folder / "adapter_model.bin"
        case 5:  # as torch.save writes it
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("archive/data.pkl", pickled)
        case 6:
            _replaced(file).symlink_to(file.name)
        case 7:
            os.mkfifo(_replaced(file))
        case 8:
            _replaced(file)
        case 9:
            os.mkfifo(_replaced(config))
            return folder
        case 10:
            _replaced(config).symlink_to(config.name)
            return folder
        case 11:
            _replaced(file).symlink_to(rng.choice(["/dev/zero", "/dev/null", str(folder), "/nowhere"]))
        case 12:
            return folder / rng.choice(["a\0b", "x" * 5000, "a/" * 3000, "\ud800", "é\n"])
        case 13:
            with socket.socket(socket.AF_UNIX) as server:
                _replaced(file)
                server.bind(str(file))
        case 14:
            file.chmod(0)
        case _:
            _replaced(config).mkdir()
            return rng.choice([folder, file])
    return file


def _replaced(path: Path) -> Path:
    path.unlink(missing_ok=True)
    return path
