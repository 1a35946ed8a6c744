"""Experiments on `shapes`: a runner of stages, the paper's methods, and the result page."""
