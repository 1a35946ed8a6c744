"""Command-line arguments of the tools, using only Python's standard library.

`import vild` takes seconds, since it imports torch and Detectron2. With arguments defined here, a
tool shows its help and reports mistakes before it imports `vild`.
"""
