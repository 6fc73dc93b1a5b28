"""Captions cut into words, as CIDEr and BLEU count them: by pycocoevalcap's own tokenizer where there is Java."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

from ..errors import ConfigError

logger = logging.getLogger(__name__)

# "ptb": the Penn Treebank tokenizer that published rows are computed with. "plain": lower-case words; figures then
# differ by some per cent from what the same captions would get in a paper.
Tokenizer: TypeAlias = Literal["ptb", "plain"]


@dataclass(frozen=True)
class CaptionTokens:
    """Candidates [n], and the references of each, as words joined by spaces; and by which tokenizer."""

    candidates: list[str]
    references: list[list[str]]
    tokenizer: Tokenizer


def tokenize_captions(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, tokenizer: Tokenizer | None = None
) -> CaptionTokens:
    """Cut candidates and their references by one and the same tokenizer; by default "ptb" where Java is.

    Raises `ConfigError` without pycocoevalcap, and where "ptb" is asked for and there is no Java.
    """
    require_pycocoevalcap()
    if len(candidates) != len(references) or not all(references):
        raise ValueError("Every candidate has one reference at least.")
    flat = [*candidates, *(text for texts in references for text in texts)]
    lines = None if tokenizer == "plain" else _penn_treebank(flat)
    if lines is None and tokenizer == "ptb":
        raise ConfigError("The Penn Treebank tokenizer needs Java, which does not run here.", "Install a Java runtime.")
    used: Tokenizer = "plain" if lines is None else "ptb"
    cut = iter([" ".join(re.findall(r"\w+", text.lower())) for text in flat] if lines is None else lines)
    return CaptionTokens(
        list(islice(cut, len(candidates))), [list(islice(cut, len(texts))) for texts in references], used
    )


def require_pycocoevalcap() -> None:
    """Raise `ConfigError` where pycocoevalcap is not installed: before a long run, not at its end."""
    if find_spec("pycocoevalcap") is None:
        raise ConfigError("CIDEr and BLEU need pycocoevalcap.", "pip install 'racm3[evaluation]'")


def _penn_treebank(captions: Sequence[str]) -> list[str] | None:
    """None where Java does not run. The library's own wrapper writes into its installation, which may be read-only."""
    if shutil.which("java") is None:
        return None
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = [
        "java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines",
        "-lowerCase",
    ]  # fmt: skip
    # One line a caption, whatever the caption holds.
    text = "".join(" ".join(caption.split()) + "\n" for caption in captions)
    ran = subprocess.run(command, input=text.encode("utf-8", "replace"), capture_output=True, check=False)
    lines = ran.stdout.decode("utf-8", "replace").split("\n")[: len(captions)]
    if ran.returncode or len(lines) < len(captions):
        logger.warning("the Penn Treebank tokenizer failed: %s", ran.stderr.decode("utf-8", "replace").strip())
        return None
    return [" ".join(word for word in line.split() if word not in ptbtokenizer.PUNCTUATIONS) for line in lines]
