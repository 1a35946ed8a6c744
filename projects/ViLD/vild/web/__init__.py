"""The web page of tools/web_demo.py: its layout, its detector, and protection from visitors."""
