"""CM3: one decoder-only Transformer over text tokens and image tokens.

Read in the order in which a document flows: vocabulary, document_format, masking, image_tokenizer, model, decoding,
generator.
"""
