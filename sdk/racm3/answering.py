"""From prompts that are grounded to answers that say where they came from."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .crossing import checked_outputs
from .document import Document, Image, MaskedImage
from .errors import ConfigError
from .generation import Generation
from .interfaces import Generator, Output, Request, Retriever, Selection, Skip
from .options import Options
from .ranking import Rerank, ranked
from .retrieval import Clock, NotGrounded
from .settings import validate


@dataclass(frozen=True)
class Asked:
    """Prompts that are ready to be answered: what each is grounded on, how, and the seconds that it took so far."""

    prompts: list[Document]
    selections: list[Selection]
    options: Options
    rerank: Rerank | None
    spent: dict[str, float]

    @property
    def requests(self) -> list[Request]:
        pairs = zip(self.prompts, self.selections, strict=True)
        return [Request(prompt, tuple(chosen.hits)) for prompt, chosen in pairs]


def all_options(
    own: type[Options] | None,
    options: Options | Mapping[str, Any] | None,
    *,
    defaults: Mapping[str, Any] | None = None,
    n: int = 1,
    seed: int | None,
) -> Options:
    """All options in one, of the generator's own type: `n` and `seed` are short for the fields of the same name.

    defaults: what holds where `options` says nothing."""
    own = own or Options
    # A subclass that the generator does not name is the caller's business.
    kind = type(options) if isinstance(options, Options) and not issubclass(own, type(options)) else own
    given = {**(defaults or {}), **given_options(options)}
    if n != 1 or "n" not in given:
        given["n"] = n
    if seed is not None or "seed" not in given:
        # 32 bits: every random generator takes them, and one can type them.
        given["seed"] = secrets.randbits(32) if seed is None else seed
    return kind(**validate(kind, given, "A generation"))


def given_options(options: Options | Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that somebody gave, by name. Raises `ConfigError` for what is none."""
    if not isinstance(options, (Options, Mapping, type(None))):
        raise ConfigError(
            f"Options are an Options or a mapping, not {type(options).__name__}.", 'For example {"temperature": 0.8}.'
        )
    return options.model_dump(exclude_unset=True) if isinstance(options, Options) else dict(options or {})


def check_defaults(own: type[Options] | None, defaults: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless these can be the options of every answer of a generator (`own`: its type of them)."""
    if "n" in defaults:
        raise ConfigError(
            "The options of a pipeline have no n: each call says how many samples it wants.",
            "imagine(caption, n=4), or racm3 generate -n 4.",
        )
    all_options(own, None, defaults=defaults, seed=0)


def answers(asked: Asked, made: list[list[Output]], generator: Generator, retriever: Retriever) -> list[Generation]:
    """What the generator made of each prompt, checked, pasted and ranked."""
    outputs = [
        [_pasted(prompt, output) for output in filled]
        for prompt, filled in zip(
            asked.prompts, checked_outputs(generator, made, asked.prompts, n=asked.options.n), strict=True
        )
    ]
    scores: list[list[float]] = [[] for _ in outputs]
    stages = ["retrieve", "sample", "generate"]
    if asked.rerank is not None:
        stages.append("rerank")
        with Clock(asked.spent, "rerank"):
            for i, prompt in enumerate(asked.prompts):
                outputs[i], scores[i] = ranked(prompt, outputs[i], asked.rerank, retriever)
    seconds = {stage: asked.spent.get(stage, 0.0) / len(outputs) for stage in stages} if outputs else {}
    made_by = fingerprints(generator, retriever)
    return [
        Generation(prompt, filled, seen.hits, seen.skipped, asked.options.seed, seconds, made_by, found, asked.options)
        for prompt, filled, seen, found in zip(
            asked.prompts, outputs, map(_seen, asked.selections, outputs), scores, strict=True
        )
    ]


def fingerprints(generator: Generator, retriever: Retriever) -> dict[str, str]:
    """What identifies the weights that took part."""
    return {"retriever": retriever.encoder.fingerprint, "generator": generator.fingerprint}


def _pasted(prompt: Document, output: Output) -> Output:
    """The output with every masked picture as it was outside of its region."""
    if not any(isinstance(part, MaskedImage) for part in prompt.parts):
        return output
    parts = [
        asked.paste(part) if isinstance(asked, MaskedImage) and isinstance(part, Image) else part
        for asked, part in zip(prompt.parts, output.document.parts, strict=True)
    ]
    return replace(output, document=output.document.replace(parts=parts))


def _seen(selection: Selection, outputs: Sequence[Output]) -> Selection:
    """The selection without the documents that did not fit the generator's context: nothing was grounded on those."""
    seen = outputs[0].grounded_on
    hits = selection.hits
    if seen is None or len(seen) >= len(hits):
        return selection
    if not seen:
        warnings.warn(
            f"None of the {len(hits)} documents fits the generator's context. The answer is not grounded.",
            NotGrounded,
            stacklevel=5,
        )
    cut = [Skip(hit, "no room in the generator's context") for place, hit in enumerate(hits) if place not in seen]
    return Selection([hit for place, hit in enumerate(hits) if place in seen], [*selection.skipped, *cut])
