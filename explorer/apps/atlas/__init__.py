"""The Atlas page without its widgets: what is known of every paper, and the address that names a view of it."""
