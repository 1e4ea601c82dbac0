"""Archives that tests unpack, with every Python from 3.11.0 on."""

from __future__ import annotations

import tarfile
from pathlib import Path


def unpack(archive: Path, directory: Path) -> None:
    """Unpacks a tar archive of this project into `directory`. `extractall` has a parameter for the filter since 3.11.4
    only, and Debian 12 has 3.11.2; the attribute is set everywhere, and read where there are filters.
    """
    with tarfile.open(archive) as opened:
        opened.extraction_filter = getattr(tarfile, "data_filter", None)
        opened.extractall(directory)
