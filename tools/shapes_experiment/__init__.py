"""The paper's experiment on `shapes`, as stages: what the quickstart and the benchmark run."""
