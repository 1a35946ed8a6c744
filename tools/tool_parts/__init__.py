"""What the larger tools do, each in a module of its name, imported once arguments are parsed."""
