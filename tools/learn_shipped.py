"""Learn the interventions that ship with lineas, on SmolLM2-135M-Instruct, from the sentence sets in src/lineas/data.

    python tools/learn_shipped.py [NAME ...]

Writes src/lineas/data/interventions/NAME. The maps are kept sparse (a few kB each) by the sparse group lasso, on the
second half of the layers. Each card says what was measured: how often a classifier fitted on the set's own two sides takes
the continuations of shipped openings for the target side, and the perplexity of neutral sentences.
"""
