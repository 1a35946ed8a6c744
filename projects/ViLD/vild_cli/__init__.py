"""Command lines of the tools, on Python's standard library alone.

`import vild` takes seconds, since it imports torch and Detectron2. With arguments defined here, a
tool shows its help and refuses a mistake before it imports `vild`.
"""
