"""Training runs as folders: what asks for one, what it says of itself while it goes, and the page that watches."""
