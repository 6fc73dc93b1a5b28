"""Where the emoji world comes from: nine pinned npm packages, fetched by the npm client and checked by hash."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from racm3.errors import RACM3Error


class SourceError(RACM3Error):
    """A source package could not be fetched, is not the pinned one, or lacks a member."""


@dataclass(frozen=True)
class Source:
    """One pinned npm package and what its licence asks us to say about it.

    `integrity` is npm's own notation: "sha512-" and the base64 of the tarball's SHA-512.
    """

    name: str
    version: str
    integrity: str
    licence: str
    attribution: str
    homepage: str

    @property
    def filename(self) -> str:
        """The name that `npm pack` gives to the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


EMOJIBASE = Source(
    "emojibase-data",
    "17.0.0",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "MIT",
    "Emojibase by Miles Johnson",
    "https://github.com/milesj/emojibase",
)
FLUENT = Source(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    "MIT",
    "Fluent Emoji by Microsoft Corporation",
    "https://github.com/microsoft/fluentui-emoji",
)
NOTO = Source(
    "@iconify-json/noto",
    "1.2.9",
    "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    "Apache-2.0",
    "Noto Emoji by Google Inc",
    "https://github.com/googlefonts/noto-emoji",
)
TWEMOJI = Source(
    "@iconify-json/twemoji",
    "1.2.5",
    "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    "CC-BY-4.0",
    "Twemoji by Twitter, Inc and other contributors",
    "https://github.com/jdecked/twemoji",
)
NOTO_V1 = Source(
    "@iconify-json/noto-v1",
    "1.2.5",
    "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    "Apache-2.0",
    "Noto Emoji, first generation, by Google Inc",
    "https://github.com/googlefonts/noto-emoji",
)
FLAG_ICONS = Source(
    "@iconify-json/flag",
    "1.2.12",
    "sha512-B5zphOSTn54UX9v1sKsR1atuhyuXExiAkjuLQA8aeDcB68+P6oiStEDeEEVkbHgwvFvklPM2G7GhqFw6VMnXhw==",
    "MIT",
    "Flag Icons by Panayiotis Lipiridis",
    "https://github.com/lipis/flag-icons",
)
CIRCLE_FLAGS = Source(
    "@iconify-json/circle-flags",
    "1.2.11",
    "sha512-vrx2btOkTQ4/P75ElEDnjXShmNTwInXuhhpIQQ6U6YUTdxfWyvm/4ijNG8FX8iWFr+sqqQRCvXpm2RfRtjVXfg==",
    "MIT",
    "Circle Flags by HatScripts",
    "https://github.com/HatScripts/circle-flags",
)
FLAGPACK = Source(
    "@iconify-json/flagpack",
    "1.2.8",
    "sha512-fWiMOWi6pHf757xK4OfHrqOfUpnJ4oTwu4rlzt4twJyNO9V34ui0cMj7qrCP/yI0mS/k1zZ3In/lOZWyjgfMjw==",
    "MIT",
    "Flagpack by Yummygum",
    "https://github.com/Yummygum/flagpack-core",
)
COREUI = Source(
    "@iconify-json/cif",
    "1.2.7",
    "sha512-MUDOUt7xWMsWw9QW312wlCxblqaR+sRfQRokO6ZH7Xp+53HgzHA7K+ejrite+ULpV/bBVe6XZIrxSShXEpdpNg==",
    "CC0-1.0",
    "CoreUI Flags by creativeLabs Łukasz Holeczek",
    "https://github.com/coreui/coreui-icons",
)

SOURCES: tuple[Source, ...] = (
    EMOJIBASE,
    FLUENT,
    NOTO,
    TWEMOJI,
    NOTO_V1,
    FLAG_ICONS,
    CIRCLE_FLAGS,
    FLAGPACK,
    COREUI,
)


def default_cache() -> Path:
    """The user's cache folder for the emoji world; not created here."""
    return platformdirs.user_cache_path("racm3") / "emoji"


def fetch(source: Source, cache: Path) -> Path:
    """Return the tarball of `source` in the folder `cache`, packing it with npm if it is not there.

    A tarball is checked against the pinned SHA-512 whether it was cached or fresh; a cached one that fails is
    fetched again. Raises SourceError if npm is missing or fails, or if a fresh tarball has another hash.
    """
    tarball = cache / source.filename
    if tarball.is_file() and integrity_of(tarball) == source.integrity:
        return tarball
    cache.mkdir(parents=True, exist_ok=True)
    # On the same file system, so that the checked tarball appears in the cache in one step.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        fresh = _npm_pack(source, Path(folder))
        verify(source, fresh)
        os.replace(fresh, tarball)
    return tarball


def verify(source: Source, tarball: Path) -> None:
    """Raise SourceError unless `tarball` is the pinned one."""
    found = integrity_of(tarball)
    if found != source.integrity:
        raise SourceError(
            f"{source.name}@{source.version} has the hash {found}, but {source.integrity} is pinned.",
            "The package was altered on the way or by its registry: do not use it; try another network or mirror.",
        )


def integrity_of(path: Path) -> str:
    """The file's SHA-512 in npm's notation."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    return "sha512-" + base64.b64encode(digest).decode("ascii")


def read_json(tarball: Path, member: str) -> Any:
    """Parse the JSON file `member` (a path inside the package, such as "icons.json") without unpacking to disk.

    Raises SourceError if the package has no such member.
    """
    with tarfile.open(tarball, "r:gz") as archive:
        try:
            file = archive.extractfile(f"package/{member}")
        except KeyError:
            file = None
        if file is None:
            raise SourceError(f"{tarball.name} has no file {member!r}.", "Delete the tarball to have it fetched again.")
        return json.load(file)


def _npm_pack(source: Source, folder: Path) -> Path:
    """Have npm put the package's tarball into `folder`, and return its path."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError(
            f"{source.name}@{source.version} is not in the cache, and npm, which fetches it, is not installed.",
            "Install Node.js, or put the tarball into the cache folder yourself.",
        )
    command = [npm, "pack", f"{source.name}@{source.version}", "--loglevel=error", "--ignore-scripts"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    tarball = folder / source.filename
    if result.returncode != 0 or not tarball.is_file():
        reason = (result.stderr or result.stdout).strip() or f"exit status {result.returncode}"
        raise SourceError(
            f"npm could not fetch {source.name}@{source.version}: {reason}",
            "Check the network and npm's own settings: `npm ping` should answer.",
        )
    return tarball
