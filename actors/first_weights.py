"""The folder that the actors of a run load its first weights and its tokenizer from, where each of them sees it.

A packaged model and a policy made from nothing lie in the cache of the driver's machine. Actors of a cluster that is
joined may live on other machines: they read a copy in the run folder, which all machines share.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from actors.warm_start import warm_start
from engine.config.model import ModelSource
from engine.config.run import RunConfig
from engine.errors import RunFolderError
from engine.preflight import Checked
from engine.run_folder import RunFolder

NAME = "first_weights"
"""Of the copy."""


def first_weights(config: RunConfig, checked: Checked, folder: RunFolder, say: Callable[[str], None]) -> Path:
    """Absolute path of the Hugging Face folder that every actor reads; a copy is made once in the life of a run.

    Raises:
        RunFolderError: the run folder has no room for the copy.
    """
    copy = folder.path / NAME
    copies = config.cluster.joined and config.model.source is not ModelSource.folder
    if copies and (copy / "config.json").is_file():
        return copy
    found = (checked.folder or warm_start(config, checked.prompts, say)).absolute()
    if not copies:
        return found
    folder.require_room(sum(file.stat().st_size for file in found.rglob("*")))
    say(f"copying the first weights into {copy}, where all machines of the cluster see them")
    # This process holds the run folder, so what lies under this name is of a life that was cut off.
    half_made = folder.path / f".{NAME}"
    shutil.rmtree(half_made, ignore_errors=True)
    try:
        shutil.copytree(found, half_made)
        half_made.rename(copy)
    except OSError as error:
        raise RunFolderError(f"the first weights could not be copied into {copy} ({error}): make run.dir a folder "
                             "with room that this user may write") from error
    return copy
