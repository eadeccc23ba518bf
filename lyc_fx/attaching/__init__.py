"""The attached road: adapters beside the layers of a living module, which keeps its class and its Python code."""
