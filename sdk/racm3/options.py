"""How a generator fills blanks: what one can ask for at each call."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """How a generator fills blanks.

    n: samples per request. seed: every sample has a random stream of its own, from seed, request and sample number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(1, ge=1, description="samples per request")
    seed: int = Field(0, ge=0)
    temperature: float = Field(1.0, ge=0, description="0: the most likely token")
    top_p: float = Field(1.0, gt=0, le=1, description="smallest set of tokens with this probability; 1: all")
    top_k: int | None = Field(None, ge=1, description="only the k most likely tokens")
    max_text_tokens: int = Field(64, ge=1, description="length limit of each text blank")
