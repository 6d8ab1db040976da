"""The paper's tables and figures, a module each: which rows, which figure, which findings by which rule."""
