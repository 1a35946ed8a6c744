"""The paper's experiment on `shapes` as stages, for the quickstart and the benchmark."""
