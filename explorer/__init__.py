"""trajectory-explorer: see, measure and tune the trajectories of few-step generative models."""

__version__ = "0.1.0"
