"""What `make setup` is made of: choosing the environment and mending two third-party packages.

Standard library only: this code runs before anything is installed.
"""
