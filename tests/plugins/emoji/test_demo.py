"""Which things the demo shows, without any model."""

from __future__ import annotations

from racm3 import Document
from racm3_emoji.demo import choose


def thing(entity: str, group: str, style: str = "Noto") -> Document:
    return Document(f"{entity}, in {style} style", metadata={"entity": entity, "group": group, "style": style})


def test_flags_come_first_then_the_groups_in_turn() -> None:
    things = [thing(f"{group}{n}", group) for n in range(4) for group in ("objects", "animals", "flags")]
    chosen = [str(d.metadata["entity"]) for d in choose(things, 7)]
    assert chosen == ["flags0", "flags1", "flags2", "animals0", "objects0", "animals1", "objects1"]


def test_each_thing_is_shown_once_and_there_may_be_fewer_than_asked_for() -> None:
    things = [thing("banjo", "objects"), thing("banjo", "objects", "Twemoji"), thing("bhutan", "flags")]
    assert [d.text for d in choose(things, 8)] == ["bhutan, in Noto style", "banjo, in Noto style"]
