"""The Trajectory Lab behind its page: what is computed, the store, what the panes show, and what can be saved."""
