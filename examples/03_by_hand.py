"""The four parts, put together by hand: python examples/03_by_hand.py

Any of them can be replaced by an object of your own that implements its interface (racm3.interfaces).
"""

from racm3 import Blank, Document, Options, Pipeline
from racm3.generators.cm3.generator import Cm3Generator
from racm3.memories.faiss import FaissMemory
from racm3.retrievers.clip import ClipRetriever
from racm3.samplers.diverse import DiverseSampler
from racm3_emoji.bundle import BUNDLE, held_out_documents

retriever = ClipRetriever(str(BUNDLE / "retriever"))
memory = FaissMemory()  # in RAM; FaissMemory(Path("./memory")) keeps it
sampler = DiverseSampler(threshold=0.98)
generator = Cm3Generator(checkpoint=BUNDLE / "generator")

with Pipeline(retriever, memory, sampler, generator) as pipeline:
    pipeline.add(held_out_documents())
    print(len(memory), "documents")

    prompt = Document(["flag: Norway, in Twemoji style", Blank("image")])
    answer = pipeline.generate(prompt, k=2, where={"group": "flags"}, seed=1, options=Options(top_p=0.9))
    print("drawn after:", [(hit.document.text, round(hit.score, 3)) for hit in answer.hits])
    print("passed over:", [(skip.hit.id, skip.reason) for skip in answer.skipped])

    # The same prompt, grounded on documents given by hand instead of retrieved ones.
    steered = pipeline.generate(prompt, context=[answer.hits[-1].document], seed=1)
    print("log-probability:", round(answer.log_probability, 1), "and, by hand,", round(steered.log_probability, 1))
