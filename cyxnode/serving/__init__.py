"""A model behind HTTP: `python -m cyxnode.serving FILE`, which is `cyx serve FILE`. No network takes part."""
