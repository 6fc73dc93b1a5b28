"""The paper's analysis of one recipe: what changes when the documents, their parts, or the objective change."""
