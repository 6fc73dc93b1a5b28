"""Samplers: which of the candidates the generator sees (paper section 3.2). `diverse` is the default."""
