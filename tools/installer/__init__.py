"""Implementation of `make setup`: choosing the environment and patching third-party packages.

Standard library only: this code runs before anything is installed.
"""
