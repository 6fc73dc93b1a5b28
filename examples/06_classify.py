"""k-shot classification by label probabilities: python examples/06_classify.py

The picture is an unseen flag. First nothing is shown to the model but the picture; then one example of each label, by
another vendor, in groups of two; then what the retriever finds by itself.
"""

from racm3 import Pipeline
from racm3_emoji.bundle import held_out_documents

with Pipeline.from_preset("emoji") as pipeline:
    flags = [document for document in held_out_documents() if document.texts[0].startswith("flag: ")]
    picture = flags[0].image
    labels = list(dict.fromkeys(flag.texts[0].split(",")[0] for flag in flags))[:4]
    print("the picture shows", labels[0])
    examples = [
        (pipeline.search(label, k=1, where={"group": "flags"})[0].document.image, label) for label in reversed(labels)
    ]
    for what, arguments in (
        ("no example", {"k": 0}),
        ("one example of each", {"examples": examples}),
        ("two retrieved documents", {"k": 2}),
    ):
        answer = pipeline.classify(picture, labels, **arguments)
        likely = ", ".join(f"{label} {p:.3f}" for label, p in answer.probabilities.items())
        print(f"{what}: {likely}")
