"""Training: the three stages (image tokenizer, retriever, generator) on one loop."""
