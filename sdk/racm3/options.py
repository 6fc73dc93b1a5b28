"""How a generator fills blanks: what one can ask for at each call."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """How a generator fills blanks. A generator takes what applies to it.

    n: samples per request. seed: every sample has a random stream of its own, from seed, prompt and sample number, so
    that it comes out the same alone and among others (equal prompts of one call are told apart by their order).

    guidance: classifier-free, l_u + s (l_c - l_u): the unconditional stream hides the prompt and keeps the documents.
    context_guidance: the same for the documents, l_0 + s (l_c - l_0), where l_0 sees the prompt alone (context-aware
    decoding, arXiv 2305.14739): above 1 the model keeps closer to what was retrieved. With both, the documents' comes first.
    decoding: "contrast" draws by CD-K, log p_c - log p_u among the tokens with p_c >= contrast_share times the
    contrast_k-th largest p_c; "mixed" every second sample (CM3Leon). Where a prompt shows nothing but what is filled,
    there is nothing to hide, and both draw as without. group_size: run groups of so many documents and
    average the predictions, where the context has more (paper section 4).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    n: int = Field(1, ge=1, le=4096, description="samples per request")
    seed: int = Field(0, ge=0)
    temperature: float = Field(1.0, ge=0, description="0: the most likely token")
    top_p: float = Field(1.0, gt=0, le=1, description="smallest set of tokens with this probability; 1: all")
    top_k: int | None = Field(None, ge=1, description="only the k most likely tokens")
    max_text_tokens: int = Field(64, ge=1, le=2**16, description="length limit of each text blank")
    min_text_tokens: int = Field(0, ge=0, description="a text does not end before, unless it is as long as it may be")
    no_repeat: int = Field(0, ge=0, description="no so many text tokens in a row twice; 0: allowed")
    repetition_penalty: float = Field(1.0, ge=1, description="divides the probability of text tokens drawn before")
    guidance: float = Field(1.0, ge=0, le=100, description="classifier-free guidance scale; 1: none")
    context_guidance: float = Field(1.0, ge=0, le=100, description="guidance by the retrieved documents; 1: none")
    decoding: Literal["sample", "contrast", "mixed"] = "sample"
    contrast_k: int = Field(8, ge=1)
    contrast_share: float = Field(0.5, gt=0, le=1)
    group_size: int | None = Field(None, ge=1, description="documents in a group; None: one group, cut to what fits")
