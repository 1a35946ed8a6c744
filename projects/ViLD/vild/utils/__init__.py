"""Files, formatted text and yaml: what every part of the package may import."""
